// What scripts use of 'k6/execution'.

export default { scenario: { name: '', iterationInTest: 0 } };
