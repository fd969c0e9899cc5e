'use strict';
// What Node runs for a context: one cell after another in its global scope, as the prompt of the developer tools does.
//
// Four descriptors, named on the command line: orders, a line of JSON each; our answers, where what must keep its place
// among the streams waits for one byte back; one where the number of a cell that has not ended stops what runs, be it a
// loop that never comes back (a thread waits for it); and an object that reseeds OpenSSL when it is loaded. Code is evaluated through the inspector, which alone knows
// top-level await and lets a later cell declare a `const` anew.

const crypto = require('crypto');
const fs = require('fs');
const inspector = require('inspector');
const Module = require('module');
const net = require('net');
const path = require('path');
const { Writable } = require('stream');
const util = require('util');
const { Worker } = require('worker_threads');

const [ORDERS, ANSWERS, STOP, RESEED] = process.argv.splice(1).slice(1).map(Number);
const ANSWER_LIMIT = 64 * 1024 * 1024;
const JSON_LIMIT = 256 * 1024;
const JSON_NODES = 10_000;
const JSON_DEPTH = 50;
const TEXT_LIMIT = 1024 * 1024;
const IMPORT = '__casemate_import__';
const DISPLAY = Symbol.for('Jupyter.display');

const { parse, stringify } = JSON; // whatever a cell makes of the global ones
const { scheduleTimer } = require('internal/test/binding').internalBinding('timers');
let running = null; // the number of the cell
const shared = new Int32Array(new SharedArrayBuffer(8)); // with the thread: the last cell that ended, stops seen
let shownLast = 1;
const session = new inspector.Session();
session.connect();
const post = util.promisify((method, params, done) => session.post(method, params, done));

function writeAll(fd, data) {
  for (let at = 0; at < data.length; ) {
    try {
      at += fs.writeSync(fd, data, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error; // a child of the cell made the pipe so
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2);
    }
  }
}

function answer(message) {
  writeAll(ANSWERS, Buffer.from(stringify(message) + '\n'));
}

function ask(message) {
  answer(message);
  fs.readSync(ANSWERS, Buffer.alloc(1));
}

// --- Streams -----------------------------------------------------------------------------------------------------

// Node's own would make the pipe non-blocking, for everybody who has it.
class Out extends Writable {
  constructor(fd) {
    super({ decodeStrings: true });
    this.fd = fd;
  }

  // Past the machinery of Writable, which a stop within a write leaves waiting for the end of that write, for good.
  write(chunk, encoding, done) {
    if (this.writableEnded || this.destroyed || !(typeof chunk === 'string' || chunk instanceof Uint8Array)) {
      return super.write(chunk, encoding, done); // it knows what to say
    }
    if (typeof encoding === 'function') [encoding, done] = ['utf8', encoding];
    this._write(typeof chunk === 'string' ? Buffer.from(chunk, encoding) : chunk, encoding, (error) => {
      if (error) this.destroy(error);
      if (done) process.nextTick(done, error);
    });
    return true;
  }

  _write(chunk, encoding, done) {
    try {
      if (running !== null && shownLast !== this.fd) ask({ event: 'turn' });
      shownLast = this.fd;
      writeAll(this.fd, chunk);
    } catch (error) {
      return done(error);
    }
    done();
  }
}

function lazily(target, name, make) {
  const set = (value) => Object.defineProperty(target, name, { value, writable: true, configurable: true });
  const get = () => {
    const value = make();
    set(value);
    return value;
  };
  Object.defineProperty(target, name, { get, set, configurable: true });
}

function renewStdin() {
  lazily(process, 'stdin', () => fs.createReadStream(null, { fd: 0, autoClose: false }));
}

// --- What is shown -----------------------------------------------------------------------------------------------

function inspected(value) {
  return util.inspect(value, typeof value === 'string' ? { maxStringLength: TEXT_LIMIT } : {});
}

function isPlain(value, budget, depth = 0) {
  if (--budget.nodes < 0 || depth > JSON_DEPTH) return false;
  if (value === null || typeof value === 'boolean') return true;
  if (typeof value === 'string') return (budget.bytes -= value.length) >= 0;
  if (typeof value === 'number') return Number.isFinite(value);
  if (typeof value !== 'object' || util.types.isProxy(value)) return false;
  if (Array.isArray(value)) return value.every((item) => isPlain(item, budget, depth + 1));
  if (![Object.prototype, null].includes(Object.getPrototypeOf(value))) return false;
  const all = Object.values(Object.getOwnPropertyDescriptors(value));
  return all.every((one) => 'value' in one && isPlain(one.value, budget, depth + 1));
}

function bundleOf(value) {
  const own = value !== null && typeof value === 'object' && value[DISPLAY];
  if (typeof own === 'function') return encoded(own.call(value));
  const data = { 'text/plain': inspected(value) };
  const isContainer = value !== null && typeof value === 'object';
  if (isContainer && isPlain(value, { nodes: JSON_NODES, bytes: JSON_LIMIT })) data['application/json'] = value;
  return data;
}

function encoded(bundle) {
  const data = {};
  for (const [mime, value] of Object.entries(bundle)) {
    data[mime] = value instanceof Uint8Array ? Buffer.from(value).toString('base64') : value;
  }
  return data;
}

function isBundle(value) {
  if (value === null || typeof value !== 'object') return false;
  const names = Object.keys(value);
  return names.length > 0 && names.every((name) => /^[\w.+-]+\/[\w.+-]+$/.test(name));
}

function show(type, data, more = {}) {
  if (running === null) return process.stdout.write(`${data['text/plain'] ?? Object.keys(data)}\n`);
  let text = stringify({ type, data, metadata: {}, ...more });
  if (text.length > ANSWER_LIMIT) {
    text = stringify({ type, data: { 'text/plain': `<${text.length} bytes, too large to be shown>` }, metadata: {} });
  }
  writeAll(ANSWERS, Buffer.from(`{"event":"show","body":${text}}\n`));
  fs.readSync(ANSWERS, Buffer.alloc(1));
}

/** display({mime: text, JSON or bytes}) or display(any value); {metadata, display_id, update} as Jupyter has them. */
function display(value, { metadata, display_id, update } = {}) {
  const more = {};
  if (metadata !== undefined) more.metadata = metadata;
  if (display_id !== undefined) more.display_id = String(display_id);
  if (update !== undefined) more.update = Boolean(update);
  show('display', isBundle(value) ? encoded(value) : bundleOf(value), more);
}

// --- Errors ------------------------------------------------------------------------------------------------------

function failed(error, details = {}, source = { code: '', file: 'cell' }) {
  try {
    return described(error, details, source);
  } catch {
    return { kind: 'error', name: 'Uncaught', value: 'what was thrown throws when it is read', traceback: '' };
  }
}

function described(error, details, source) {
  if (!util.types.isNativeError(error) && typeof error?.stack !== 'string') {
    return { kind: 'error', name: 'Uncaught', value: inspected(error), traceback: `Uncaught ${inspected(error)}` };
  }
  let traceback = ownFrames(String(error.stack));
  if (error.name === 'SyntaxError' && !traceback.includes('\n    at ')) traceback = placeOf(details, source) + traceback;
  if (error.cause !== undefined) traceback += `\ncause: ${ownFrames(inspected(error.cause))}`;
  return { kind: 'error', name: String(error.name), value: String(error.message), traceback };
}

/** Without the frames below the cell: the inspector's and those of this file. */
function ownFrames(stack) {
  const lines = stack.split('\n');
  const ours = (line) => /^ {4}at .*(\(node:inspector:|node:internal\/util:)/.test(line) || line.includes(__filename);
  const end = lines.findIndex(ours);
  return (end < 0 ? lines : lines.slice(0, end)).filter((line) => !line.includes(__filename)).join('\n');
}

function placeOf(details, { code, file }) {
  const lines = code.split('\n');
  const number = Math.min(details.lineNumber ?? 0, lines.length - 1);
  const column = number === details.lineNumber ? details.columnNumber : lines[number].length;
  return `${file}:${number + 1}\n${lines[number].slice(0, 2000)}\n${' '.repeat(Math.min(column, 2000))}^\n\n`;
}

// --- import ------------------------------------------------------------------------------------------------------

// The inspector compiles without a module loader: what says `import` is led to one that stands in the context's folder.
function rewriteImports(code) {
  if (!/\bimport\b/.test(code)) return code;
  const edits = [];
  const visit = (node) => {
    if (Array.isArray(node)) return node.forEach(visit);
    if (node === null || typeof node?.type !== 'string') return undefined;
    if (node.type === 'ImportExpression') edits.push([node.start, node.start + 'import'.length, IMPORT]);
    if (node.type === 'ImportDeclaration') return edits.push([node.start, node.end, declared(node, code)]);
    return Object.values(node).forEach(visit);
  };
  try {
    const acorn = require('internal/deps/acorn/acorn/dist/acorn');
    const leave = { allowAwaitOutsideFunction: true, allowImportExportEverywhere: true, allowHashBang: true };
    visit(acorn.parse(code, { ecmaVersion: 'latest', sourceType: 'script', ...leave }).body);
  } catch {
    return code; // it is no JavaScript, or newer than the parser: let the engine say so
  }
  edits.sort((one, other) => other[0] - one[0]);
  for (const [start, end, text] of edits) code = code.slice(0, start) + text + code.slice(end);
  return code;
}

function declared(node, code) {
  const from = `await ${IMPORT}(${node.source.raw})`;
  const named = node.specifiers.filter((one) => one.type !== 'ImportNamespaceSpecifier');
  const whole = node.specifiers.find((one) => one.type === 'ImportNamespaceSpecifier');
  const nameOf = (one) => (one.type === 'ImportDefaultSpecifier' ? 'default' : one.imported.raw ?? one.imported.name);
  const pairs = named.map((one) => `${nameOf(one)}: ${one.local.name}`).join(', ');
  const parts = [];
  if (whole) parts.push(`const ${whole.local.name} = ${from};`);
  if (named.length || !whole) parts.push(pairs ? `const {${pairs}} = ${from};` : `${from};`);
  return parts.join(' ') + '\n'.repeat(code.slice(node.start, node.end).split('\n').length - 1);
}

function makeGlobals() {
  const here = path.join(process.cwd(), '[cell].cjs');
  const module = new Module(here, null);
  module.filename = here;
  module.paths = Module._nodeModulePaths(process.cwd());
  module._compile('module.exports = { require, load: (name) => import(name) };', here);
  const { require: ownRequire, load } = module.exports;
  module.exports = {};
  const define = (name, value) => Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
  define('require', ownRequire);
  define('module', module);
  define('display', display);
  define(IMPORT, load);
  for (const name of Module.builtinModules) {
    if (!name.includes('/') && !name.startsWith('_') && !(name in globalThis)) lazily(globalThis, name, () => ownRequire(name));
  }
}

// --- Cells -------------------------------------------------------------------------------------------------------

let take = null; // a handle on the function that brings a value from the inspector to us
let taken;

async function valueOf(remote) {
  const { objectId, unserializableValue, value } = remote;
  if (remote.type === 'undefined') return undefined;
  const handed = objectId ? { objectId } : unserializableValue ? { unserializableValue } : { value };
  const call = { objectId: take, functionDeclaration: 'function (value) { this(value); }', arguments: [handed] };
  await post('Runtime.callFunctionOn', call);
  const found = taken;
  taken = undefined;
  return found;
}

async function openInspector() {
  globalThis.__casemate_take__ = (value) => (taken = value);
  take = (await post('Runtime.evaluate', { expression: '__casemate_take__' })).result.objectId;
  delete globalThis.__casemate_take__;
}

async function run(order) {
  renewStdin();
  running = order.id;
  let end;
  try {
    end = await evaluate(order);
  } catch (error) {
    // Else it is the user's, too: a getter, or what he says how a value is shown.
    end = /Execution was terminated/.test(error?.message) ? { kind: 'interrupted' } : failed(error);
  }
  finish(order.id, end);
}

async function evaluate({ id, code, file }) {
  const expression = `${rewriteImports(code)}\n//# sourceURL=${file}`;
  const how = { replMode: true, awaitPromise: true, objectGroup: 'cell', generatePreview: false };
  const { result, exceptionDetails } = await post('Runtime.evaluate', { expression, ...how });
  if (running !== id) return { kind: 'interrupted' };
  const value = await valueOf(exceptionDetails ? exceptionDetails.exception : result);
  await post('Runtime.releaseObjectGroup', { objectGroup: 'cell' });
  if (exceptionDetails) return failed(value, exceptionDetails, { code, file });
  if (value !== undefined) {
    globalThis._ = value;
    show('result', bundleOf(value));
  }
  return { kind: 'ok' };
}

function finish(id, end) {
  if (Atomics.load(shared, 0) >= id) return; // it has ended
  running = null;
  Atomics.store(shared, 0, id);
  answer({ event: 'end', id, end });
}

async function complete({ id, code, cursor }) {
  const [, base, word] = /([\w$.\]['"]*\.)?([\w$]*)$/.exec(code.slice(0, cursor));
  let names = [];
  if (base) {
    const how = { throwOnSideEffect: true, timeout: 200, objectGroup: 'cell', replMode: true };
    const { result, exceptionDetails } = await post('Runtime.evaluate', { expression: base.slice(0, -1), ...how });
    let value = exceptionDetails ? undefined : await valueOf(result);
    for (; value !== undefined && value !== null; value = Object.getPrototypeOf(value)) {
      names.push(...Object.getOwnPropertyNames(Object(value)));
    }
  } else {
    names = (await post('Runtime.globalLexicalScopeNames', {})).names.concat(Object.getOwnPropertyNames(globalThis));
  }
  const matches = [...new Set(names)].filter((name) => name.startsWith(word) && /^[\w$]+$/.test(name) && name !== IMPORT);
  answer({ event: 'completed', id, matches: matches.sort().slice(0, 1000), start: cursor - word.length, end: cursor });
}

// --- Randomness --------------------------------------------------------------------------------------------------

const FORESEEN_UUIDS = 128; // drawn ahead by crypto.randomUUID
const FORESEEN_NUMBERS = 1024; // and by crypto.randomInt
let seededRandom = Math.random;
const own = {
  dlopen: process.dlopen.bind(process),
  randomFillSync: crypto.randomFillSync,
  randomInt: crypto.randomInt,
  randomUUID: crypto.randomUUID,
};

// Neither generator of Node can be given a seed from here. Math.random is replaced, unless the user has done so.
function reseed({ entropy }) {
  const bytes = Buffer.from(entropy, 'hex');
  reseedOpenSSL(bytes.subarray(0, 16));
  for (let n = 0; n < FORESEEN_UUIDS; n++) own.randomUUID();
  for (let n = 0; n < FORESEEN_NUMBERS; n++) own.randomInt(2);
  if (Math.random === seededRandom) Math.random = seededRandom = generator(bytes.subarray(16, 32));
}

// OpenSSL has a tree of generators, two for each thread below one that asks the kernel. That one does so anew by
// RAND_poll, which loading our object calls; all below it notice before they draw next, in whatever thread. Where there
// is no RAND_poll (another library than OpenSSL) at least this thread's goes another way: by being asked for another
// number of blocks. 64 questions of 1 to 4 blocks are 128 bits.
function reseedOpenSSL(bytes) {
  try {
    own.dlopen({ exports: {} }, `/proc/self/fd/${RESEED}`);
  } catch {
    // always: loaded it was, and called what it calls; but it is no module of Node's
  }
  for (const byte of bytes) {
    for (let shift = 0; shift < 8; shift += 2) own.randomFillSync(Buffer.alloc(16 * (1 + ((byte >> shift) & 3))));
  }
}

// Source: sfc32 of PractRand (Chris Doty-Humphrey), which is in the public domain.
function generator(seed) {
  let [a, b, c, count] = [0, 4, 8, 12].map((at) => seed.readUInt32LE(at));
  const next = () => {
    const sum = (a + b + count++) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return sum >>> 0;
  };
  for (let n = 0; n < 12; n++) next();
  return function random() {
    return ((next() >>> 5) * 67108864 + (next() >>> 6)) / 9007199254740992;
  };
}

// --- Orders ------------------------------------------------------------------------------------------------------

// Of a cell, too, that never came here, because a stop came first.
function interrupt({ id }) {
  finish(id, { kind: 'interrupted' });
}

// A stop that comes too late ends what runs next. So it is this that runs next, as often as it takes. And a stop in a
// timer's callback may leave Node in the belief that it will look at its timers anyway: have it look.
function settle({ id }) {
  scheduleTimer?.(1);
  answer({ event: 'settled', id, stops: Atomics.load(shared, 1) });
}

function serve() {
  const orders = new net.Socket({ fd: ORDERS });
  const handlers = { cell: run, complete, reseed, interrupt, settle };
  let unread = [];
  orders.on('data', (data) => {
    for (let at; (at = data.indexOf(10)) >= 0; data = data.subarray(at + 1)) {
      const line = Buffer.concat([...unread, data.subarray(0, at)]).toString();
      unread = [];
      let order;
      try {
        order = parse(line);
      } catch {
        continue; // a stop took its beginning; whoever wants an answer asks again
      }
      handlers[order.op](order);
    }
    unread.push(data);
  });
  orders.on('end', () => process.exit(0));
}

function watchForStop() {
  const code = `
    const inspector = require('inspector');
    const { workerData: shared } = require('worker_threads');
    const session = new inspector.Session();
    session.connectToMainThread();
    const stop = new (require('net').Socket)({ fd: ${STOP} });
    const seen = () => Atomics.add(shared, 1, 1);
    let unread = '';
    stop.on('data', (data) => {
      const lines = (unread + data).split('\\n');
      unread = lines.pop();
      for (const line of lines) {
        if (Atomics.load(shared, 0) < Number(line)) session.post('Runtime.terminateExecution', seen);
        else seen();
      }
    });`;
  new Worker(code, { eval: true, workerData: shared, stdin: false, stdout: false }).unref();
}

async function main() {
  for (const [fd, name] of [[1, 'stdout'], [2, 'stderr']]) lazily(process, name, () => new Out(fd));
  process.on('SIGINT', () => {}); // the engine beside us has got it too, and says what to do
  process.on('uncaughtException', (error) => process.stderr.write(`Uncaught ${ownFrames(inspected(error))}\n`));
  watchForStop();
  makeGlobals();
  await openInspector();
  serve();
  answer({ event: 'ready', version: process.versions.node });
}

main();
