from loopjax.cli import run

run()
