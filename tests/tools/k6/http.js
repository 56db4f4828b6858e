// What scripts use of 'k6/http': as there, a call returns with the answer. A thread asks; this one sleeps meanwhile.

import { MessageChannel, Worker, receiveMessageOnPort } from 'node:worker_threads';

const flag = new Int32Array(new SharedArrayBuffer(4));
const { port1: ours, port2: theirs } = new MessageChannel();
const asker = new Worker(
  `const { workerData: { flag, port } } = require('node:worker_threads');
   port.on('message', async ({ url, ...how }) => {
     let told;
     try {
       const answer = await fetch(url, how);
       told = { status: answer.status, body: await answer.text() };
     } catch (error) {
       told = { status: 0, body: String(error.cause ?? error) };
     }
     port.postMessage(told);
     Atomics.store(flag, 0, 1);
     Atomics.notify(flag, 0);
   });`,
  { eval: true, workerData: { flag, port: theirs }, transferList: [theirs] },
);
asker.unref();

export const asked = []; // [method, path, status, whether that is expected]
let expected = (status) => status >= 200 && status < 400;

function request(method, url, body, params = {}) {
  Atomics.store(flag, 0, 0);
  ours.postMessage({ url, method, body: body ?? undefined, headers: params.headers ?? {} });
  if (Atomics.wait(flag, 0, 0, 30_000) === 'timed-out') {
    throw new Error(`no answer to ${method} ${url}`);
  }
  const { status, body: text } = receiveMessageOnPort(ours).message;
  asked.push([method, new URL(url).pathname, status, expected(status)]);
  const json = (path) => (path?.split('.') ?? []).reduce((value, name) => value?.[name], JSON.parse(text));
  return { status, body: text, json };
}

export default {
  get: (url, params) => request('GET', url, null, params),
  post: (url, body, params) => request('POST', url, body, params),
  expectedStatuses: (...statuses) => (status) => statuses.includes(status),
  setResponseCallback: (callback) => {
    expected = callback;
  },
};
