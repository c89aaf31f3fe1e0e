"""The environment, read whole and refused whole."""

from pathlib import Path

import pytest

from marathon_app.settings import DemoDelays, MailServer, PostgresServer, Settings, SettingsError, load_settings


def test_nothing_set_gives_the_defaults():
    """Without any variable the app listens on loopback and keeps its runners under var/."""
    settings = load_settings({"PATH": "/bin"})

    assert settings == Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.database == Path("var/marathon.db")
    assert settings.mail_server is None


def test_empty_means_not_set():
    """A variable set to nothing, as compose files and make have it, is the default."""
    assert load_settings({"MARATHON_DEMO_DELAYS": "", "MARATHON_PORT": " "}) == Settings()


def test_every_variable_is_read():
    """Each documented variable arrives, converted, in its field."""
    settings = load_settings(
        {
            "MARATHON_HOST": "::1",
            "MARATHON_PORT": "0",
            "MARATHON_DATABASE_URL": "sqlite:////tmp/a%20b.db",
            "MARATHON_SMTP_URL": "smtps://ada%40example.com:p%2Fw@mail.example.com",
            "MARATHON_MAIL_FROM": "race@example.com",
            "MARATHON_DEMO_DELAYS": "insert=180, mail=350",
            "MARATHON_RATE_LIMIT": "30",
        }
    )

    assert settings == Settings(
        host="::1",
        port=0,
        database=Path("/tmp/a b.db"),
        mail_server=MailServer(
            host="mail.example.com", port=465, security="tls", username="ada@example.com", password="p/w"
        ),
        mail_from="race@example.com",
        demo_delays=DemoDelays(insert=180.0, mail=350.0),
        rate_limit=30,
    )


@pytest.mark.parametrize(
    ("url", "port", "security"),
    [
        ("smtp://mail.example.com", 25, "none"),
        ("smtp://127.0.0.1:1025/", 1025, "none"),
        ("smtps://u:p@mail.example.com", 465, "tls"),
        ("smtp+starttls://u:p@mail.example.com", 587, "starttls"),
    ],
)
def test_mail_servers(url, port, security):
    """The scheme says what protects the connection, and the port when none is given."""
    server = load_settings({"MARATHON_SMTP_URL": url}).mail_server

    assert server is not None
    assert (server.port, server.security) == (port, security)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MARATHON_PORT", "eighty"),
        ("MARATHON_PORT", "65536"),
        ("MARATHON_PORT", "-1"),
        ("MARATHON_PORT", "9" * 5000),
        ("MARATHON_HOST", "http://localhost"),
        ("MARATHON_DATABASE_URL", "marathon.db"),
        ("MARATHON_DATABASE_URL", "postgresql://localhost"),
        ("MARATHON_DATABASE_URL", "sqlite:///marathon.db?timeout=5"),
        ("MARATHON_DATABASE_URL", "sqlite:///:memory:"),
        ("MARATHON_DATABASE_URL", "sqlite://"),
        ("MARATHON_DATABASE_URL", "sqlite:///var/"),
        ("MARATHON_DATABASE_URL", "sqlite:///a%00b"),
        ("MARATHON_DATABASE_URL", "sqlite://[/x"),
        ("MARATHON_SMTP_URL", "mail.example.com:25"),
        ("MARATHON_SMTP_URL", "http://mail.example.com"),
        ("MARATHON_SMTP_URL", "smtp://"),
        ("MARATHON_SMTP_URL", "smtp://host:0"),
        ("MARATHON_SMTP_URL", "smtp://host:99999"),
        ("MARATHON_SMTP_URL", "smtp://host:port"),
        ("MARATHON_SMTP_URL", "smtp://host/path"),
        ("MARATHON_SMTP_URL", "smtp://ada@host"),
        ("MARATHON_MAIL_FROM", "Ada <ada@example.com>"),
        ("MARATHON_DEMO_DELAYS", "insert"),
        ("MARATHON_DEMO_DELAYS", "insert=fast"),
        ("MARATHON_DEMO_DELAYS", "insert=-1"),
        ("MARATHON_DEMO_DELAYS", "insert=nan"),
        ("MARATHON_DEMO_DELAYS", "mail=60001"),
        ("MARATHON_DEMO_DELAYS", "mail=1,mail=2"),
        ("MARATHON_DEMO_DELAYS", "lunch=5"),
        ("MARATHON_RATE_LIMIT", "many"),
        ("MARATHON_RATE_LIMIT", "-5"),
        ("MARATHON_PROT", "8000"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_mend(name, value):
    """Each fault names its variable and says what to write instead."""
    with pytest.raises(SettingsError) as caught:
        load_settings({name: value})

    assert list(caught.value.faults) == [name]
    assert name in str(caught.value)
    assert any(word in caught.value.faults[name] for word in ("use ", "give ", "there are "))


def test_all_faults_are_told_at_once():
    """One start shows every fault, not one a start."""
    environ = {"MARATHON_PORT": "x", "MARATHON_SMTP_URL": "x", "MARATHON_COLOUR": "x", "MARATHON_HOST": "localhost"}

    with pytest.raises(SettingsError) as caught:
        load_settings(environ)

    assert set(caught.value.faults) == {"MARATHON_PORT", "MARATHON_SMTP_URL", "MARATHON_COLOUR"}


@pytest.mark.parametrize("url", ["smtp://ada:secret@host:port", "http://ada:secret@host", "smtp://ada:secret@host/x"])
def test_a_refused_mail_url_is_not_repeated(url):
    """E20: The message about a bad URL never holds the password in it."""
    with pytest.raises(SettingsError) as caught:
        load_settings({"MARATHON_SMTP_URL": url})

    assert "secret" not in str(caught.value)


def test_settings_do_not_show_the_password():
    """E20: Neither the settings nor the mail server show credentials when printed."""
    settings = load_settings({"MARATHON_SMTP_URL": "smtps://ada:secret@mail.example.com"})

    assert "secret" not in f"{settings!r} {settings} {settings.mail_server} {[settings.mail_server]}"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_a_postgresql_url_is_taken(scheme):
    """E20: PostgreSQL is named by its usual URLs, by host or by socket, and its password is not shown."""
    for rest in ("app:s%40cret@db:5432/marathon?sslmode=require", "app:s%40cret@/marathon?host=/run/postgresql"):
        server = load_settings({"MARATHON_DATABASE_URL": f"{scheme}://{rest}"}).database

        assert server == PostgresServer(f"postgresql://{rest}")
        assert "cret" not in f"{server!r} {server} {Settings(database=server)}"


@pytest.mark.parametrize("rest", ["app:secret@db:port/marathon", "app:secret@db", "app:secret@db/", "app:secret@/x"])
def test_a_refused_database_url_is_not_repeated(rest):
    """E20: The message about a bad URL of a database never holds the password in it."""
    with pytest.raises(SettingsError, match="use postgresql://") as caught:
        load_settings({"MARATHON_DATABASE_URL": f"postgresql://{rest}"})

    assert "secret" not in str(caught.value)
