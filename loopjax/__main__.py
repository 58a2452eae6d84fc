from loopjax.cli.main import run

run()
