// Medici under load: N callers, one after the other's answer, each charge as Medici's README withdraws
// from a wallet: an entry, the balance after it, a write lock on the wallet, in one transaction.
//
//   node medici.mjs DIRECTORY JOB
//
// DIRECTORY is where medici and mongoose are installed; JOB is JSON: uri, database, users,
// openingCredits, cost, callers, atATime (0: all), hotShare, warmUpSeconds, seconds, longestSeconds,
// drainSeconds, snapshots.
// Prints "ready" when users have their credits, waits for a line on standard input, then prints what
// came of it as JSON: times in seconds, latencies in milliseconds.

import { createRequire } from "node:module";
import { once } from "node:events";
import { join } from "node:path";

const [, , directory, text] = process.argv;
const job = JSON.parse(text);
const require = createRequire(join(directory, "package.json"));
const mongoose = require("mongoose");
const { Book, initModels, mongoTransaction } = require("medici");

const DURABLE = {
  readConcern: { level: "snapshot" },
  writeConcern: { w: "majority", j: true },
  readPreference: "primary",
};
const account = (user) => `Accounts:${user}`;
const seconds = () => performance.now() / 1000;
const sleep = (time) => new Promise((resolve) => setTimeout(resolve, time * 1000));
// Integers only. Without snapshots, a balance is always the sum of all its transactions.
const book = new Book("benchmark", {
  precision: 0,
  ...(job.snapshots ? {} : { balanceSnapshotSec: 0 }),
});

async function open() {
  await mongoose.connect(job.uri, { dbName: job.database, writeConcern: DURABLE.writeConcern });
  await initModels();
  const entry = book.entry("Opening credits");
  entry.debit("Assets", job.openingCredits * job.users.length);
  for (const user of job.users) entry.credit(account(user), job.openingCredits);
  await entry.commit();
}

async function charge(user) {
  await mongoTransaction(async (session) => {
    await book
      .entry("generate-post")
      .credit("Assets", job.cost)
      .debit(account(user), job.cost)
      .commit({ session });
    const { balance } = await book.balance({ account: account(user) }, { session });
    if (balance < 0) throw new Error("Not enough balance in wallet.");
    await book.writelockAccounts([account(user)], { session });
  }, DURABLE);
}

function choose() {
  const { users, hotShare } = job;
  if (!hotShare || users.length === 1) return users[Math.floor(Math.random() * users.length)];
  if (Math.random() < hotShare) return users[0];
  return users[1 + Math.floor(Math.random() * (users.length - 1))];
}

// Lets so many charges through at a time; the others wait their turn.
let free = job.atATime || Infinity;
const waiting = [];
async function throughTheGate(user) {
  if (free > 0) free -= 1;
  else await new Promise((resolve) => waiting.push(resolve));
  try {
    await charge(user);
  } finally {
    const next = waiting.shift();
    if (next) next();
    else free += 1;
  }
}

const acknowledged = {};
const unknown = {}; // sent, and not acknowledged: those in flight, and those that failed
const errors = {};
const finished = []; // moment, latency in milliseconds
let stopped = false;
const add = (counts, name, number = 1) => (counts[name] = (counts[name] ?? 0) + number);

async function call() {
  while (!stopped) {
    const user = choose();
    const begun = seconds();
    add(unknown, user);
    try {
      await throughTheGate(user);
    } catch (error) {
      add(errors, error.codeName ?? error.name);
      await sleep(0.01);
      continue;
    }
    const now = seconds();
    add(unknown, user, -1);
    add(acknowledged, user);
    finished.push([now, (now - begun) * 1000]);
  }
}

function sample() {
  const { user, system } = process.cpuUsage();
  return { moment: seconds(), cpu: (user + system) / 1e6 };
}

process.stdin.once("end", () => process.exit(1)); // the benchmark is no more
await open();
console.log("ready");
await once(process.stdin, "data");
const callers = Array.from({ length: job.callers }, call);
await sleep(job.warmUpSeconds);
const first = sample();
const enough = finished.length + job.callers;
await sleep(job.seconds);
// Until there was an answer a caller: a thousand transactions at once take long.
while (finished.length < enough && seconds() - first.moment < job.longestSeconds) {
  await sleep(0.05);
}
const last = sample();
stopped = true;
await Promise.race([Promise.allSettled(callers), sleep(job.drainSeconds)]);

const latencies = finished
  .filter(([moment]) => first.moment <= moment && moment < last.moment)
  .map(([, latency]) => latency)
  .sort((a, b) => a - b);
const quantile = (share) => latencies[Math.floor(latencies.length * share)] ?? 0;
const outcome = {
  charges: latencies.length,
  seconds: last.moment - first.moment,
  cpu_seconds: last.cpu - first.cpu,
  median_ms: quantile(0.5),
  p99_ms: quantile(0.99),
  errors,
  acknowledged,
  unknown: Object.fromEntries(Object.entries(unknown).filter(([, count]) => count > 0)),
};
// Transactions that are still open end with their connections.
process.stdout.write(`${JSON.stringify(outcome)}\n`, () => process.exit(0));
