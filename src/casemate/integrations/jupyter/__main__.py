"""``python -m casemate.integrations.jupyter -f CONNECTION``: the kernel, as a kernelspec starts it."""

from casemate.integrations.jupyter.kernel import CasemateKernelApp

if __name__ == "__main__":
    CasemateKernelApp.launch_instance()
