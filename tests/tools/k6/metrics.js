// What scripts use of 'k6/metrics'.

export const counted = {};

export class Counter {
  constructor(name) {
    this.name = name;
    counted[name] = 0;
  }

  add(count) {
    counted[this.name] += count;
  }
}
