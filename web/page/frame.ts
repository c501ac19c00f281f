/** Inside of the frame that grader.ts makes: starts a worker with the user's function for each batch of completions. */
import type { Graded, Rewards } from '../messages.ts';

/** Milliseconds that a batch may take. */
const LIMIT = 2000;

/** Goes behind the user's code. It has the name `reward` from there, and nothing else. */
const GRADE = `
onmessage = ({ data }) => {
  const texts = (value) => (typeof value === 'string' ? JSON.stringify(value) : String(value));
  const short = (text) => (text.length > 80 ? text.slice(0, 80) + '…' : text);
  const rewards = [];
  for (const { question, answer, text } of data) {
    let value;
    try {
      value = reward(text, answer, question);
    } catch (error) {
      postMessage({ mistake: 'the reward throws “' + short(String(error)) + '” for the completion ' + short(texts(text)) });
      return;
    }
    if (typeof value === 'boolean') value = Number(value);
    if (typeof value !== 'number' || !Number.isFinite(value)) {
      postMessage({ mistake: 'the reward must return a finite number, found ' + short(texts(value)) + ' for the completion ' + short(texts(text)) });
      return;
    }
    rewards.push(value);
  }
  postMessage({ rewards });
};`;

const REMEDY = ': mend it, take it with “Use this reward”, and go on';
let code = '';

function grade(completions: Graded[], port: MessagePort): void {
  const url = URL.createObjectURL(new Blob([`'use strict';\n${code}\n${GRADE}`], { type: 'text/javascript' }));
  const worker = new Worker(url);
  const end = (answer: Rewards) => {
    clearTimeout(timer);
    worker.terminate();
    URL.revokeObjectURL(url);
    port.postMessage('mistake' in answer ? { mistake: `${answer.mistake}${REMEDY}` } : { rewards: answer.rewards });
  };
  const timer = setTimeout(() => end({ mistake: `the reward took longer than ${LIMIT / 1000} seconds` }), LIMIT);
  worker.addEventListener('message', ({ data }) => end(data), { once: true });
  worker.addEventListener('error', (event) => {
    event.preventDefault();
    const line = event.lineno - 1; // behind the user's code stands ours
    const where = line <= code.split('\n').length ? `line ${line}` : 'at its end';
    end({ mistake: `the reward is no JavaScript (${event.message.replace(/^Uncaught /, '')}, ${where})` });
  });
  worker.postMessage(completions);
}

addEventListener('message', ({ data, ports: [port] }) => {
  if (typeof data === 'string') code = data;
  else port.onmessage = (event) => grade(event.data, port);
});
