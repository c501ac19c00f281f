/**
 * Command lines, option files and data sets that nobody would write on purpose, from a seed: each is refused with one
 * sentence, or taken as it is meant. `CASES=2000 npx vitest run tools/hostile.test.ts` tries more of them.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { OptionValues } from '@commander-js/extra-typings';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import * as base from '../experiment_base/train.ts';
import * as cispo from '../experiment_cispo/train.ts';
import * as dapo from '../experiment_dapo/train.ts';
import * as ddp from '../experiment_ddp/train.ts';
import * as drgrpo from '../experiment_drgrpo/train.ts';
import * as gspo from '../experiment_gspo/train.ts';
import * as qa from '../experiment_multiturn_qa/train.ts';
import * as tool from '../experiment_multiturn_tool/train.ts';
import * as random_reward from '../experiment_random_reward/train.ts';
import * as rloo from '../experiment_rloo/train.ts';
import { parseRunOptions } from '../lib/cli/command.ts';
import { loadQuestions } from '../lib/environments/corpus.ts';
import { loadProblems } from '../lib/environments/dataset.ts';
import { mistakeIn } from '../lib/errors.ts';
import { type LlamaConfig, readConfig } from '../lib/model/config.ts';
import { uniform } from '../lib/random.ts';
import { checkCompletions, checkSize, type SizeOptions } from '../lib/run/estimate.ts';
import { NODE, runProcess } from '../testing/processes.ts';

const CASES = Number(process.env.CASES ?? 60);
const PROCESSES = Math.ceil(CASES / 100);
const EXPERIMENTS = {
  base,
  cispo,
  dapo,
  ddp,
  drgrpo,
  gspo,
  random_reward,
  rloo,
  multiturn_tool: tool,
  multiturn_qa: qa,
};
type Name = keyof typeof EXPERIMENTS;

const folder = mkdtempSync(join(tmpdir(), 'hostile-'));
afterAll(() => rmSync(folder, { recursive: true }));
let config: LlamaConfig;
beforeAll(async () => {
  config = await readConfig('models/tiny');
});

const NUMBERS =
  '0 -0 1 2 3 7 8 16 64 -1 0.5 1.5 1e3 1e-3 1e30 1e308 1e309 -1e308 1e-46 1e-320 5e-324 65536 65537 1000000 10000000 10000001 2147483648 4294967296 5000000000 9007199254740991 9007199254740993 18446744073709551616 NaN Infinity -Infinity 0x10 1e 1_000 1,5 ١٢ null true';
const TEXTS = [
  '',
  ' ',
  '-',
  '--',
  '--max-steps=2',
  '-h2',
  '~',
  '$OUT',
  '../..',
  '\u0000',
  'a\nb',
  '\u001b[2J',
  '\u2028',
  '\ud800',
  '😀',
  "'",
  '"',
  '`id`',
];
const LONG = ['x'.repeat(300), 'y/'.repeat(3000), '9'.repeat(5000), '['.repeat(2000), '\n'.repeat(2000)];
const POOL = [...NUMBERS.split(' '), ...NUMBERS.split(' '), ...TEXTS, ...LONG];

/** A case: the experiment, its command line, and what options it names with which values. */
type Case = { name: Name; line: string[]; given: Map<string, string> };

function drawCase(number: number): Case {
  let draw = 0;
  const random = () => uniform(15, number, draw++);
  const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)];
  const name = pick(Object.keys(EXPERIMENTS) as Name[]);
  const { options } = EXPERIMENTS[name].createCommand();
  const known = options.filter(({ long }) => long !== '--config' && long !== '--resume');
  const given = new Map<string, string>();
  const chosen = Array.from({ length: 1 + Math.floor(3 * random()) }, () => pick(known));
  for (const { long, required, argChoices } of chosen) {
    given.set(long!, required ? pick(argChoices ? [...POOL, ...argChoices, ...argChoices] : POOL) : 'true');
  }
  if (random() < 0.3) {
    const file = join(folder, `${number}.yaml`);
    const scalar = pick([JSON.stringify, String, (value: string) => `[${value}]`, (value: string) => `{a: ${value}}`]);
    const entries = [...given].map(([long, value]) => `${long.slice(2)}: ${value === 'true' ? value : scalar(value)}`);
    writeFileSync(file, entries.join('\n'));
    return { name, line: ['--config', file], given: scalar === JSON.stringify ? given : new Map() };
  }
  const joined = random() < 0.5;
  const line = [...given].flatMap(([long, value]) => {
    if (options.some((option) => option.long === long && !option.required)) return [long];
    return joined ? [`${long}=${value}`] : [long, value];
  });
  if (random() < 0.1) line.push(pick(POOL));
  return { name, line, given };
}

/** What a script does with its command line before it loads anything; the options, or the sentence that refuses them. */
function attempt({ name, line }: Pick<Case, 'name' | 'line'>): { options: OptionValues } | { refusal: string } {
  const { createCommand } = EXPERIMENTS[name] as unknown as typeof base;
  try {
    const options = parseRunOptions(createCommand(), ['node', 'train.ts', ...line]);
    checkCompletions(options as SizeOptions);
    checkSize(config, options as SizeOptions, 4e9);
    return { options };
  } catch (error) {
    const refusal = mistakeIn(error);
    if (refusal === undefined) throw error;
    return { refusal };
  }
}

/** What is wrong with options that were taken, if anything is. */
function mistakeInTaken(options: OptionValues, given: Map<string, string>): string | undefined {
  const { batchSize, numGenerations, learningRate, temperature, maxNewTokens } = options as Record<string, number>;
  for (const [key, value] of Object.entries(options)) {
    if (typeof value === 'string' && !/^[^\p{Cc}\u2028\u2029]+$/u.test(value) && key !== 'systemPrompt')
      return `${key} is no text`;
    if (typeof value !== 'number') continue;
    if (!Number.isFinite(Math.fround(value)) || (value !== 0 && Math.fround(value) === 0)) return `${key} = ${value}`;
  }
  for (const [long, text] of given) {
    const value = options[long.slice(2).replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase())];
    if (typeof value === 'number' && value !== Number(text)) return `${long} is ${value}, not ${text}`;
    if (typeof value === 'string' && value !== text) return `${long} is ${value}, not ${text}`;
  }
  if (batchSize * numGenerations > 65_536 || learningRate > 1 || temperature <= 0 || maxNewTokens >= 256)
    return 'too much';
}

it(`${CASES} command lines and option files: refused with a sentence, or taken as they are meant`, () => {
  const wrong: unknown[] = [];
  let refused = 0;
  for (let number = 0; number < CASES; number++) {
    const { name, line, given } = drawCase(number);
    const began = performance.now();
    let mistake: string | undefined;
    try {
      const outcome = attempt({ name, line });
      if ('refusal' in outcome) refused++;
      mistake =
        'options' in outcome
          ? mistakeInTaken(outcome.options, given)
          : /^[^\p{Cc}\u2028\u2029]{1,500}$/u.test(outcome.refusal)
            ? undefined
            : `said ${JSON.stringify(outcome.refusal)}`;
    } catch (error) {
      mistake = `threw ${(error as Error).stack}`;
    }
    if (performance.now() - began > 5000) mistake = 'took more than 5 seconds';
    if (mistake) wrong.push({ number, name, line: line.map((word) => word.slice(0, 80)), mistake });
  }
  expect(wrong).toEqual([]);
  expect(refused).toBeGreaterThan(CASES / 3);
  expect(refused).toBeLessThan(CASES); // or nothing shows that what is meant is taken
});

it(`${CASES} data sets: refused with a sentence that names file and line, or read`, () => {
  const pieces = [
    '{"question":',
    '"answer":',
    '"1+1"',
    '2',
    ',',
    '}',
    '\n',
    '[',
    ']',
    'null',
    '1e400',
    '""',
    '\\u0000',
    '\ufeff',
    '\r\n',
  ];
  const whole = '{"question": "1+1", "answer": 2}\n';
  const bytes = [
    Buffer.from([0xff, 0xfe]),
    Buffer.from([0xc3, 0x28]),
    Buffer.from('['.repeat(100_000)),
    Buffer.from('{"a":'.repeat(50_000)),
  ];
  const wrong: unknown[] = [];
  for (let number = 0; number < CASES; number++) {
    let draw = 0;
    const pick = <T>(items: readonly T[]): T => items[Math.floor(uniform(16, number, draw++) * items.length)];
    const file = join(folder, 'data.jsonl');
    const parts = Array.from({ length: 12 }, () => pick([...pieces, whole, whole]));
    const deep = `{"question": "1", "answer": ${'['.repeat(100_000)}${']'.repeat(100_000)}}`;
    const tail = pick([Buffer.from(''), Buffer.from(''), Buffer.from(deep), ...bytes]);
    writeFileSync(file, Buffer.concat([Buffer.from(whole.repeat(number % 3) + parts.join('')), tail]));
    for (const load of [loadProblems, loadQuestions]) {
      try {
        const items = load(file);
        if (!items.every(({ question }) => question.trim() !== '')) wrong.push({ number, items });
      } catch (error) {
        const text = mistakeIn(error);
        if (text === undefined || !text.includes('data.jsonl') || text.includes('call stack')) {
          wrong.push({ number, load: load.name, error: text ?? (error as Error).stack });
        }
      }
    }
  }
  expect(wrong).toEqual([]);
});

/** What the system cannot pass to a process, no user can. */
const canBeTyped = (word: string): boolean => Buffer.from(word).toString() === word && !word.includes('\u0000');

it(`${PROCESSES} of the command lines that are refused, as processes: exit code 2, the same sentence, within 10 s`, async () => {
  vi.spyOn(console, 'log').mockImplementation(() => {});
  let left = PROCESSES;
  for (let number = 0; left > 0; number++) {
    const { name, line } = drawCase(number);
    const outcome = attempt({ name, line });
    if (!('refusal' in outcome) || !line.every(canBeTyped)) continue;
    left--;
    const began = performance.now();
    const script = `experiment_${name}/train.ts`;
    const { code, stdout, stderr } = await runProcess([
      ...NODE,
      script,
      ...line,
      ...(name === 'ddp' ? ['--nproc=1'] : []),
    ]);
    expect({ number, code, stdout, stderr }).toEqual({
      number,
      code: 2,
      stdout: '',
      stderr: `error: ${outcome.refusal}\n`,
    });
    expect(performance.now() - began).toBeLessThan(10_000);
  }
});
