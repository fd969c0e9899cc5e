"""Drives the kernel "vm" with jupyter_client or nbclient; what is wrong is an AssertionError. See test_vm_kernel.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nbclient
from jupyter_client.manager import KernelManager
from nbformat import v4

from casemate.sdk import Sandbox

LIMIT_S = 30


class Driven:
    def __init__(self) -> None:
        self.manager = KernelManager(kernel_name="vm")
        self.manager.start_kernel()
        self.client: Any = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=LIMIT_S)

    def begin(self, code: str, **more: Any) -> str:
        number: str = self.client.execute(code, **more)
        return number

    def end(self, number: str) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
        """The reply's content, and what was published."""
        said: list[tuple[str, dict[str, Any]]] = []
        while True:
            message = self.client.get_iopub_msg(timeout=LIMIT_S)
            if message["parent_header"].get("msg_id") != number:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            said.append((kind, content))
        return self.reply(number), said

    def reply(self, number: str) -> dict[str, Any]:
        while True:
            message = self.client.get_shell_msg(timeout=LIMIT_S)
            if message["parent_header"].get("msg_id") == number:
                content: dict[str, Any] = message["content"]
                return content

    def run(self, code: str, **more: Any) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
        return self.end(self.begin(code, **more))

    def ask(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        message = self.client.session.msg(kind, content)
        self.client.shell_channel.send(message)
        return self.reply(message["header"]["msg_id"])


@contextmanager
def kernel() -> Iterator[Driven]:
    driven = Driven()
    try:
        yield driven
    finally:
        driven.client.stop_channels()
        driven.manager.shutdown_kernel()


def of(kind: str, said: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [content for name, content in said if name == kind]


def text(said: list[tuple[str, dict[str, Any]]], name: str = "stdout") -> str:
    return "".join(content["text"] for content in of("stream", said) if content["name"] == name)


def protocol() -> None:
    with kernel() as k:
        executes(k)
        asks(k)
        interrupts(k)
        dies(k)
        before = [info.id for info in Sandbox.list()]
        k.run("kept = 1")
        k.client.stop_channels()
        k.manager.restart_kernel()
        k.client = k.manager.blocking_client()
        k.client.start_channels()
        k.client.wait_for_ready(timeout=LIMIT_S)
        reply, _ = k.run("kept")
        assert (reply["ename"], reply["execution_count"]) == ("NameError", 1), reply
        after = [info.id for info in Sandbox.list()]
        assert len(before) == len(after) == 1
        assert before != after


def executes(k: Driven) -> None:
    reply, said = k.run("import sys\nprint('a')\nprint('e', file=sys.stderr)\n6 * 7")
    assert (reply["status"], reply["execution_count"]) == ("ok", 1), (reply, said)
    assert (text(said), text(said, "stderr")) == ("a\n", "e\n"), said
    [value] = of("execute_result", said)
    assert (value["data"], value["execution_count"]) == ({"text/plain": "42"}, 1), value
    _, said = k.run("h = display('old', display_id='d')\nh.update('new')")
    [shown], [update] = of("display_data", said), of("update_display_data", said)
    assert shown["transient"] == update["transient"] == {"display_id": "d"}
    assert update["data"]["text/plain"] == "'new'"
    reply, said = k.run("1/0")
    [error] = of("error", said)
    assert reply["status"] == "error"
    assert reply["ename"] == error["ename"] == "ZeroDivisionError"
    assert error["traceback"]
    reply, said = k.run("n = 5; n", silent=True)
    assert not of("execute_result", said)
    assert not of("execute_input", said)
    reply, said = k.run("n", store_history=False, user_expressions={"m": "n + 1", "bad": "1/0"})
    assert of("execute_result", said)[0]["data"] == {"text/plain": "5"}
    assert reply["user_expressions"]["m"]["data"] == {"text/plain": "6"}
    assert reply["user_expressions"]["bad"]["ename"] == "ZeroDivisionError"
    reply, said = k.run("input('?')")
    assert reply["ename"] == "EOFError"
    assert "cannot ask for input" in text(said, "stderr")
    assert reply["execution_count"] == 4, reply
    first, second = k.begin("1/0"), k.begin("'never'")
    assert k.end(first)[0]["status"] == "error"
    assert k.reply(second)["status"] == "aborted"
    _, said = k.run("print(('y' * 999 + '\\n') * 9000)")
    assert len(text(said)) == 8 * 2**20
    assert "characters of output are left out" in text(said, "stderr")


def asks(k: Driven) -> None:
    found = k.ask("complete_request", {"code": "sys.std", "cursor_pos": 7})
    assert {"stdin", "stdout"} <= {match.rpartition(".")[2] for match in found["matches"]}, found
    found = k.ask("inspect_request", {"code": "len", "cursor_pos": 3, "detail_level": 0})
    assert found["found"], found
    assert "Return the number of items" in found["data"]["text/plain"]
    assert not k.ask("inspect_request", {"code": "nobody", "cursor_pos": 6})["found"]
    assert k.ask("is_complete_request", {"code": "if 1:"})["status"] == "incomplete"
    assert k.ask("comm_info_request", {})["comms"] == {}
    assert k.ask("history_request", {"hist_access_type": "tail", "output": False, "raw": True})["history"] == []
    about = k.ask("kernel_info_request", {})
    assert about["language_info"]["name"] == "python"
    assert about["supported_features"] == []
    message = k.client.session.msg("comm_open", {"comm_id": "c", "target_name": "jupyter.widget", "data": {}})
    k.client.shell_channel.send(message)
    while (said := k.client.get_iopub_msg(timeout=LIMIT_S))["msg_type"] != "comm_close":
        continue
    assert said["content"]["comm_id"] == "c"


def interrupts(k: Driven) -> None:
    number = k.begin("kept = 'yes'\nprint('on', flush=True)\nwhile True: pass")
    while k.client.get_iopub_msg(timeout=LIMIT_S)["msg_type"] != "stream":
        continue
    k.manager.interrupt_kernel()
    reply, _said = k.end(number)
    assert reply["ename"] == "KeyboardInterrupt", reply
    assert of("execute_result", k.run("kept")[1])[0]["data"] == {"text/plain": "'yes'"}


def dies(k: Driven) -> None:
    [info] = Sandbox.list()
    Sandbox.connect(info.id).kill()
    reply, _ = k.run("kept")
    assert reply["status"] == "error", reply
    reply, said = k.run("'kept' in globals()")
    assert of("execute_result", said)[0]["data"] == {"text/plain": "False"}, said
    assert "this is a fresh one" in text(said, "stderr")


def by_nbclient() -> None:
    sources = ["x = 6", "print('hi')\nx * 7", "from IPython.display import HTML\nHTML('<b>b</b>')"]
    nb = v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])
    nbclient.NotebookClient(nb, kernel_name="vm", timeout=LIMIT_S).execute()
    assert [cell.execution_count for cell in nb.cells] == [1, 2, 3]
    assert nb.cells[1].outputs[0].text == "hi\n"
    assert nb.cells[1].outputs[1].data == {"text/plain": "42"}
    assert nb.cells[2].outputs[0].data["text/html"] == "<b>b</b>"
    assert nb.metadata.language_info.name == "python"


def stay() -> None:
    driven = Driven()
    driven.run("1")
    print(driven.manager.provisioner.process.pid, flush=True)
    deadline = time.monotonic() + LIMIT_S
    while driven.manager.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    driven.client.stop_channels()
    driven.manager.cleanup_resources()


def nobody() -> None:
    with kernel() as k:
        for _ in range(2):
            reply, said = k.run("1")
            assert reply["status"] == "error"
            assert of("error", said)


if __name__ == "__main__":
    {"protocol": protocol, "nbclient": by_nbclient, "stay": stay, "nobody": nobody}[sys.argv[1]]()
