// node run.js SCRIPT COUNT: runs each scenario of a k6 script so many times, one after the other, and tells what came.

import exec from 'k6/execution';
import { asked } from 'k6/http';
import { counted } from 'k6/metrics';
import { checked } from 'k6';

globalThis.__ENV = process.env;
const [script, count] = process.argv.slice(2);
const module = await import(script);
const data = JSON.parse(JSON.stringify(module.setup())); // k6 hands it over as JSON
const before = asked.length;
for (const [name, scenario] of Object.entries(module.options.scenarios)) {
  exec.scenario.name = name;
  for (let number = 0; number < Number(count); number += 1) {
    exec.scenario.iterationInTest = number;
    module[scenario.exec](data);
  }
}
process.stdout.write(JSON.stringify({ options: module.options, checked, counted, asked: asked.slice(before) }));
process.exit(0);
