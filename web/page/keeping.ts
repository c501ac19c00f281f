/**
 * What the browser keeps of a training, so that it goes on after a reload: in its IndexedDB, a record for each algorithm. Of
 * several tabs of the page one keeps, so that nothing is mixed.
 */
import { clear, createStore, set, values } from 'idb-keyval';
import type { ToldGroup } from '../../watch/told.ts';
import type { Checkpoint, Settings, Start } from '../messages.ts';
import type { Curve } from './curves.ts';

/** What `build.ts` puts in: a hash of all that trains. Another version might go on otherwise. */
declare const TRAINER: string;

/** What was seen of a training. */
export type Seen = {
  step: number;
  curves: Record<'reward' | 'accuracy' | 'held out', Curve['points']>;
  group?: ToldGroup | undefined;
  /** steps after which the reward or a setting was changed */
  marks: number[];
};

/** A training after a step. `reward`: the user's function, in JavaScript. */
export type Kept = { given: Start & Settings; reward: string; seen: Seen; checkpoint: Checkpoint };

/** As it is stored: `text` is JSON of all but the files, which have hashes of their own. */
type Stored = { version: string; text: string; hash: string; files: Checkpoint['files'] };

const store = createStore('grpo', 'trainings');

/** Why this tab keeps nothing; empty if it does. */
const whyNot = new Promise<string>((resolve) => {
  if (!isSecureContext) return resolve('the page does not come by https');
  const isOther = () => resolve('another tab of this page is open, of which this is done');
  const hold = () => {
    resolve('');
    return new Promise(() => {}); // until the tab is closed
  };
  // Where the page is loaded again, the one before it may not have let go yet.
  navigator.locks.request('grpo', { signal: AbortSignal.timeout(1000) }, hold).catch(isOther);
});

/** One thing after the other: what is forgotten must not come back. */
let turn: Promise<unknown> = Promise.resolve();
function inTurn<T>(act: () => Promise<T>): Promise<T> {
  const done = turn.then(act);
  turn = done.catch(() => {});
  return done;
}

async function hashOf(text: string): Promise<string> {
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(text));
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

export const DAMAGED = 'what this browser has kept is damaged: Start begins from the beginning';
const OTHER = 'what this browser has kept is of another version of this page: Start begins from the beginning';

/**
 * Keeps a training, in place of what was kept of its algorithm before.
 * @returns what can be said of that
 */
export function keep({ given, reward, seen, checkpoint: { step, files } }: Kept): Promise<string> {
  const text = JSON.stringify({ given, reward, seen, step });
  return inTurn(async () => {
    const reason =
      (await whyNot) ||
      (await hashOf(text)
        .then((hash) => set(given.algorithm, { version: TRAINER, text, hash, files } satisfies Stored, store))
        .catch(String)); // no room is left, say
    return reason ? `not kept in this browser: ${reason}` : `step ${step} is kept in this browser`;
  });
}

/** What was kept by this tab, or by one before it; a sentence if it is of no use. */
export const readKept = (): Promise<Kept[] | string> =>
  inTurn(async () => {
    if (await whyNot) return [];
    const stored = await values<Stored>(store).catch(() => []); // a browser that keeps nothing
    if (stored.some(({ version }) => version !== TRAINER)) return OTHER;
    const kept: Kept[] = [];
    for (const { text, hash, files } of stored) {
      if ((await hashOf(text)) !== hash || !(files instanceof Map)) return DAMAGED;
      const { step, ...rest } = JSON.parse(text);
      kept.push({ ...rest, checkpoint: { step, files } });
    }
    return kept;
  });

/** Forgets what was kept. */
export const forget = (): Promise<void> =>
  inTurn(async () => {
    if (!(await whyNot)) await clear(store).catch(() => {});
  });
