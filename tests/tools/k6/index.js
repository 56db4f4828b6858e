// What scripts use of 'k6'.

export const checked = {}; // by name: [passed, failed]

export function check(value, checks) {
  let all = true;
  for (const [name, holds] of Object.entries(checks)) {
    const passed = Boolean(holds(value));
    checked[name] ??= [0, 0];
    checked[name][passed ? 0 : 1] += 1;
    all &&= passed;
  }
  return all;
}

export function fail(reason) {
  throw new Error(reason);
}
