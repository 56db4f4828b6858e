// The rush at a shop with a recurring sale: four kinds of visitors at once, 10,000 a second, whatever the server does.
//
//     flashsale schedule add hourly --every 1h --items 10000 --limit 10 --numbered
//     flashsale serve
//     k6 run tools/k6/loadtest.js
//
// BASE_URL is where it is, RATE how many visitors come each second, DURATION for how long: `k6 run -e RATE=2000 …`.
// 70 % check out an item at random, each a user of his own; 10 % are few users who want more than they may; 10 % check
// out and purchase with the code; 10 % send what is not valid. `python -m bench http checkout` is the same without k6.

import { check, fail } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';

const BASE_URL = __ENV.BASE_URL || 'http://127.0.0.1:8080';
const RATE = Number(__ENV.RATE || 10000);
const DURATION = __ENV.DURATION || '2m';
const HEAVY_USERS = 20;

export const options = {
  scenarios: {
    normal: arrivals(0.7, 'normal'),
    heavy: arrivals(0.1, 'heavy'),
    purchases: arrivals(0.1, 'purchases'),
    invalid: arrivals(0.1, 'invalid'),
  },
  thresholds: {
    checks: ['rate==1'], // every answer is one that is documented for what was asked
    http_req_failed: ['rate==0'], // and nobody was left without one
    dropped_iterations: ['rate<1'], // k6 had a user for whoever came
    'http_req_duration{scenario:normal}': ['p(95)<500', 'p(99)<1500'],
    'http_req_duration{scenario:purchases}': ['p(95)<500', 'p(99)<1500'],
  },
};

http.setResponseCallback(http.expectedStatuses(200, 400, 409, 429));

function arrivals(share, name) {
  const rate = Math.max(1, Math.round(RATE * share));
  return {
    executor: 'constant-arrival-rate',
    exec: name,
    rate,
    timeUnit: '1s',
    duration: DURATION,
    preAllocatedVUs: Math.max(1, Math.round(rate / 20)),
    maxVUs: Math.max(10, Math.round(rate / 2)),
  };
}

// What every visitor is given: how many items there are, and a word that tells this run's users from others.
export function setup() {
  const answer = http.get(`${BASE_URL}/stats`);
  if (answer.status !== 200) {
    fail(`there is no current sale at ${BASE_URL}: flashsale schedule add …`);
  }
  return { items: Number(answer.json('stats.total_items')), run: Date.now().toString(36) };
}

export function normal({ items, run }) {
  checkOut(`user_${run}_${exec.scenario.iterationInTest}`, items, [200, 409]);
}

export function heavy({ items, run }) {
  checkOut(`heavy_${run}_${exec.scenario.iterationInTest % HEAVY_USERS}`, items, [200, 409, 429]);
}

export function purchases({ items, run }) {
  const code = checkOut(`buyer_${run}_${exec.scenario.iterationInTest}`, items, [200, 409]);
  if (code) {
    const answer = http.post(`${BASE_URL}/purchase?code=${code}`, null, { tags: { name: 'purchase' } });
    check(answer, {
      'purchase: purchased': (given) => given.status === 200 && given.json('purchase_id').startsWith('purchase_'),
    });
  }
}

export function invalid({ run }) {
  const user = `invalid_${run}_${exec.scenario.iterationInTest}`;
  const targets = [
    '/checkout',
    `/checkout?user_id=${user}`,
    '/checkout?id=1',
    `/checkout?user_id=${user}&id=none`,
    `/checkout?user_id=${user}&id=0`,
    `/checkout?user_id=${user}&id=999999999`,
    `/checkout?user_id=${user}&id=1%27%20OR%20%271%27=%271`,
    '/purchase',
    `/purchase?code=${user}`,
  ];
  const target = targets[exec.scenario.iterationInTest % targets.length];
  const answer = http.post(`${BASE_URL}${target}`, null, { tags: { name: 'invalid' } });
  check(answer, {
    'invalid: refused, with a reason': (given) => given.status === 400 && given.json('message') !== '',
  });
}

// Return the code that holds an item at random, or nothing.
function checkOut(user, items, expected) {
  const item = 1 + Math.floor(Math.random() * items);
  const answer = http.post(`${BASE_URL}/checkout?user_id=${user}&id=${item}`, null, { tags: { name: 'checkout' } });
  check(answer, { 'checkout: as documented': (given) => expected.includes(given.status) });
  return answer.status === 200 ? answer.json('checkout_code') : '';
}
