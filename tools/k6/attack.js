// A crowd at one product: 200 buyers at once, then 500, each of whom buys again as soon as he has an answer.
//
//     flashsale init iphone15 100
//     flashsale serve
//     k6 run tools/k6/attack.js
//
// BASE_URL is where it is, PRODUCT what they want: `k6 run -e PRODUCT=iphone15 …`. Each request is of another user and
// has another request id. In the end `sold` must be what there was, which `flashsale status iphone15` confirms.
// `python -m bench --connections 500 …` and `python -m bench megaload` are such crowds without k6.

import { check } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { Counter } from 'k6/metrics';

const BASE_URL = __ENV.BASE_URL || 'http://127.0.0.1:8080';
const PRODUCT = __ENV.PRODUCT || 'iphone15';
const JSON_BODY = { headers: { 'Content-Type': 'application/json' } };

const sold = new Counter('sold');
const soldOut = new Counter('sold_out');

export const options = {
  scenarios: {
    attack: {
      executor: 'ramping-vus',
      exec: 'buy',
      startVUs: 200,
      stages: [
        { duration: '10s', target: 200 },
        { duration: '10s', target: 500 },
        { duration: '10s', target: 500 },
      ],
      gracefulRampDown: '5s',
    },
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    http_req_duration: ['p(95)<500', 'p(99)<1500'],
  },
};

http.setResponseCallback(http.expectedStatuses(200, 410));

// What every buyer is given: a word that tells this run's users and requests from others.
export function setup() {
  return { run: Date.now().toString(36) };
}

export function buy({ run }) {
  const number = exec.scenario.iterationInTest;
  const body = JSON.stringify({
    request_id: `request_${run}_${number}`,
    user_id: `user_${run}_${number}`,
    item_id: PRODUCT,
    quantity: 1,
  });
  const answer = http.post(`${BASE_URL}/api/purchase`, body, JSON_BODY);
  check(answer, {
    'sold or sold out': (given) =>
      (given.status === 200 && given.json('success') === true) ||
      (given.status === 410 && given.json('message') === 'sold out'),
  });
  if (answer.status === 200) {
    sold.add(1);
  } else if (answer.status === 410) {
    soldOut.add(1);
  }
}
