"""Starts InvokeAI's server: `python invokeai_web.py --root DIRECTORY`, by InvokeAI's Python."""

import torchvision_operators  # noqa: F401 - before InvokeAI imports torchvision
from invokeai.app.run_app import run_app

if __name__ == "__main__":
    run_app()
