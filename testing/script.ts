/** For tests of the script as a user runs it, with a random model so small that a step takes milliseconds. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll } from 'vitest';
import { writeTestData, writeTestModel } from './model.ts';
import { BACKEND, type During, NODE, runProcess } from './processes.ts';

const temp = mkdtempSync(join(tmpdir(), 'grpo-'));
export const at = (...names: string[]) => join(temp, ...names);
export const MODEL = at('model');
afterAll(() => rmSync(temp, { recursive: true, force: true }));

beforeAll(async () => {
  await writeTestModel(MODEL);
  writeTestData(at('data.jsonl'), 12);
});

export const TINY =
  `--model-name ${MODEL} --dataset ${at('data.jsonl')} --backend ${BACKEND} --eval-size 4 --max-new-tokens 16`.split(
    ' ',
  );
export const SHORT = [...TINY, ...'--batch-size 2 --num-generations 4 --max-steps 8 --learning-rate 0.01'.split(' ')];

/** Runs the script to its end; `during` may meddle with it meanwhile. */
export const run = (
  args: string[],
  {
    script = 'experiment_base/train.ts',
    command = NODE,
    during,
  }: { script?: string; command?: string[]; during?: During | undefined } = {},
) => runProcess([...command, script, ...args], { during });
