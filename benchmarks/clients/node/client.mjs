// The official client for Node, used as its documentation says. The argument is the JSON of a job,
// the last line of output its result; see contract.py.

import { connect } from "@nats-io/transport-node";

const task = JSON.parse(process.argv[2]);
const payload = new TextEncoder().encode("0123456789abcdef".repeat(task.size / 16 + 1)).slice(0, task.size);
const warmUp = Math.max(task.requesters, 100, Math.floor(task.count * 0.05));
const timeout = 10_000;

const say = (fields) => console.log(JSON.stringify(fields));

class Stopwatch {
  constructor() {
    this.start();
  }
  start() {
    this.cpu = process.cpuUsage();
    this.began = process.hrtime.bigint();
  }
  result(count) {
    const { user, system } = process.cpuUsage(this.cpu);
    return { seconds: Number(process.hrtime.bigint() - this.began) / 1e9, cpu: (user + system) / 1e6, count };
  }
}

async function publish(nc) {
  for (let i = 0; i < warmUp; i++) nc.publish(task.subject, payload);
  await nc.flush();
  const watch = new Stopwatch();
  for (let i = 0; i < task.count; i++) nc.publish(task.subject, payload);
  await nc.flush();
  return watch.result(task.count);
}

function counted(nc) {
  const watch = new Stopwatch();
  let received = 0;
  return new Promise((resolve) => {
    nc.subscribe(task.subject, {
      callback: () => {
        if (received === 0) watch.start();
        received += 1;
        if (received === task.count) resolve(watch.result(task.count - 1));
      },
    });
  });
}

async function receive(nc) {
  const finished = counted(nc);
  await nc.flush();
  say({ ready: true });
  return await finished;
}

async function both(nc) {
  const finished = counted(nc);
  await nc.flush();
  const watch = new Stopwatch();
  for (let i = 0; i < task.count; i++) nc.publish(task.subject, payload);
  await finished;
  return watch.result(task.count);
}

async function serial(nc) {
  const times = [];
  for (let i = 0; i < warmUp; i++) await nc.request(task.subject, payload, { timeout });
  const watch = new Stopwatch();
  for (let i = 0; i < task.count; i++) {
    const began = process.hrtime.bigint();
    await nc.request(task.subject, payload, { timeout });
    times.push(Number(process.hrtime.bigint() - began) / 1e9);
  }
  const result = watch.result(task.count);
  times.sort((a, b) => a - b);
  const p99 = times[Math.min(times.length - 1, Math.floor(times.length * 0.99))];
  return { ...result, median: times[Math.floor(times.length / 2)], p99 };
}

async function concurrent(nc) {
  const requester = async (requests) => {
    for (let i = 0; i < requests; i++) await nc.request(task.subject, payload, { timeout });
  };
  const allAtOnce = (each) => Promise.all(Array.from({ length: task.requesters }, () => requester(each)));
  const each = Math.max(1, Math.floor(task.count / task.requesters));
  await allAtOnce(Math.max(1, Math.floor(warmUp / task.requesters)));
  const watch = new Stopwatch();
  await allAtOnce(each);
  return watch.result(each * task.requesters);
}

const works = { publish, receive, both, serial, concurrent };
const nc = await connect({ servers: task.url });
say(await works[task.work](nc));
await nc.close();
