"""What is seen from outside the process only: exit codes, forks, interpreters that end with work pending."""

import os
import subprocess
import sys
import textwrap

import pytest

LIMIT = 30  # seconds; each of these ends at once, or hangs


def run(script, *flags, code=0):
    """Run this script; return what it printed and logged, and check its exit code."""
    prologue = "import asyncio, os, sys, threading\nfrom deferred import *\n"
    environment = {**os.environ, "DEFERRED_DRAIN_TIMEOUT": "0.2", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, *flags, "-c", prologue + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=environment,
        check=False,
    )
    assert done.returncode == code, done.stderr
    for wrong in ("never awaited", "destroyed but", "never retrieved", "Exception ignored", "Logging error"):
        assert wrong not in done.stderr, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyboardInterrupt()", "BaseException()", "GeneratorExit()"])
def test_the_exit_code(error):
    """A02: whatever a task raises, the process goes on and ends as it would have."""
    out, _ = run(
        f"""
        async def bad():
            raise {error}
        def bad_thread():
            raise {error}
        async def main():
            async with Supervisor() as supervisor:
                with supervisor.context() as ctx:
                    ctx.defer(bad); ctx.defer(bad_thread); ctx.wait_until(bad())
                await ctx.drained(30)
            print(supervisor.stats().failed)
        asyncio.run(main())
        sys.exit(7)
    """,
        code=7,
    )
    assert out.strip() == "3"


def test_the_end_with_work_pending():
    """A44: an interpreter that ends with work pending names it, once, and exits as it would have."""
    _, err = run(
        """
        async def forever():
            await asyncio.get_running_loop().create_future()
        supervisor = Supervisor()
        async def told(event):
            pass
        supervisor.add_hook(told)
        async def main():
            global scope
            scope = supervisor.context()
            ctx = scope.__enter__()
            ctx.defer(forever)
            ctx.with_options(name="waited").wait_until(forever())
            await asyncio.sleep(0)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        sys.exit(5)
    """,
        code=5,
    )
    assert err.count("'forever'") == 1
    assert err.count("'waited'") == 1


def test_the_end_of_asyncio_run():
    """A44: `asyncio.run` that ends with tasks running cancels them, and each is recorded."""
    out, _ = run("""
        async def forever():
            await asyncio.get_running_loop().create_future()
        supervisor = Supervisor()
        async def main():
            with supervisor.context() as ctx:
                handles = [ctx.defer(forever), ctx.wait_until(forever()), ctx.with_options(timeout=50).defer(forever)]
            await asyncio.sleep(0.01)
            return handles
        handles = asyncio.run(main())
        print(*[handle.state.value for handle in handles])
    """)
    assert out.split() == ["cancelled"] * 3


@pytest.mark.parametrize(
    "work",
    [
        (
            "async def work():\n    begun.set()\n    while True:\n        try:\n            await asyncio.sleep(1000)\n"
            "        except asyncio.CancelledError:\n            pass\n"
        ),
        "def work():\n    begun.set()\n    threading.Event().wait()\n",
    ],
    ids=["ignores every cancel", "blocks its thread"],
)
def test_what_will_not_end(work):
    """A12, A13, A22: work that never ends is named and left behind, and the process exits by itself."""
    script = """
        async def main():
            async with Supervisor(cancel_grace=0.1) as supervisor:
                with supervisor.context() as ctx:
                    ctx.defer(work)
                while not begun.is_set():
                    await asyncio.sleep(0.01)
                print(len((await supervisor.drain()).abandoned))
        asyncio.run(main())
        sys.exit(4)
    """
    out, err = run("begun = threading.Event()\n" + work + textwrap.dedent(script), code=4)
    assert out.strip() == "1"
    assert "abandoned 'work'" in err


def test_a_fork():
    """A45: in a forked child registering is refused, another supervisor works, and the parent is as it was."""
    out, _ = run("""
        import warnings; warnings.simplefilter("ignore")
        async def work():
            await asyncio.sleep(0.05)
            return "done"
        async def fresh():
            async with Supervisor() as supervisor:
                with supervisor.context() as ctx:
                    handle = ctx.defer(work)
                return await handle
        def child(supervisor, ctx):
            refused = []
            for register in (lambda: ctx.defer(work), lambda: ctx.wait_until(work())):
                try:
                    register()
                except SupervisorClosedError:
                    refused.append(True)
            stats = supervisor.stats()
            print("child", refused, asyncio.run(fresh()), stats.pending, stats.running, flush=True)
        async def main():
            async with Supervisor() as supervisor:
                with supervisor.context() as ctx:
                    ctx.wait_until(work())
                    handle = ctx.defer(work)
                    await asyncio.sleep(0)
                    pid = os.fork()
                    if not pid:
                        try:
                            child(supervisor, ctx)
                        finally:
                            os._exit(0)
                    os.waitpid(pid, 0)
                print("parent", await handle, supervisor.stats().succeeded)
        asyncio.run(main())
    """)
    assert out.splitlines() == ["child [True, True] done 0 0", "parent done 2"]


def test_prefork():
    """A45: a supervisor of a module, made but not opened, serves each forked worker."""
    out, _ = run("""
        import warnings; warnings.simplefilter("ignore")
        supervisor = Supervisor()
        async def work():
            return "done"
        async def main():
            async with supervisor:
                with supervisor.context() as ctx:
                    handles = ctx.defer(work), ctx.defer(len, "abc")
                print(await handles[0], await handles[1], flush=True)
        for _ in range(2):
            pid = os.fork()
            if not pid:
                asyncio.run(main())
                sys.stdout.flush()
                os._exit(0)
            os.waitpid(pid, 0)
        asyncio.run(main())
    """)
    assert out.splitlines() == ["done 3"] * 3


def test_a_thread_registers_at_the_end():
    """A44: a thread that goes on registering while the interpreter ends is refused, and nothing hangs."""
    run("""
        supervisor = Supervisor(max_pending=10**6, max_per_context=10**6)
        async def work():
            pass
        def hammer(ctx):
            while True:
                try:
                    ctx.defer(work)
                except Exception:
                    return
        async def main():
            async with supervisor:
                with supervisor.context() as ctx:
                    ctx.defer(work)
                    threading.Thread(target=hammer, args=(ctx,), daemon=True).start()
                    await asyncio.sleep(0.05)
        asyncio.run(main())
    """)
