/**
 * Asks a model questions, as experiment_base asks them in training.
 *
 *   npm run ask                                            the bundled model, question after question
 *   npm run ask -- models/tiny "47+38-9" --verbose         one question, with the log-probability of each token
 *   npm run ask -- runs/experiment_base/<time> "47+38-9" --samples 4
 */
import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { buildPrompt, type Draw, type Options, type Rollout, rollout } from '../experiment_base/train.ts';
import { runMain } from '../lib/cli/main.ts';
import { examples, integer, number, parseOptions } from '../lib/cli/options.ts';
import { checkPrompts } from '../lib/environments/dataset.ts';
import { UserError } from '../lib/errors.ts';
import type { Completion } from '../lib/generation/generate.ts';
import { uniform } from '../lib/random.ts';
import { oneLine, shown } from '../lib/text.ts';
import { createPolicyCommand, loadPolicy, type Policy } from './policy.ts';

/** Tokens of an answer where neither the command line nor a run says how many, and the model has room for them. */
const ROOM = 256;

/** Parses a temperature, of which 0 is greedy. */
const temperature = (text: string): number => (text.trim() === '0' ? 0 : number({ min: 0.001, max: 1000 })(text));

export const createCommand = () =>
  createPolicyCommand('ask')
    .argument('[question...]', 'without one: a question a line, from the terminal or a pipe')
    .description('Asks a model questions, each by itself, as in training.')
    .addHelpText(
      'after',
      examples(
        'npm run ask',
        'npm run ask -- models/tiny "47+38-9" --verbose',
        'npm run ask -- models/tiny < questions',
      ),
    )
    .option('--max-new-tokens <n>', 'tokens an answer may have', integer({ min: 1 }))
    .option('--temperature <x>', '0: greedy (default: 0 for one answer, 1 for more)', temperature)
    .optionsGroup('Answers:')
    .option('--samples <n>', 'answers to each question', integer({ min: 1, max: 1024 }), 1)
    .option('--answer <text>', 'the right one: says the reward of each answer')
    .option('--verbose', 'show the prompt, and the log-probability of each token of the answers');

type Asked = ReturnType<ReturnType<typeof createCommand>['opts']>;

/** A text that steers no terminal. */
const harmless = (text: string) => text.split('\n').map(oneLine).join('\n');

/**
 * Asks one question.
 * @param write - gets the answers; of a single one, as it grows
 * @throws {UserError} if the model has no room for the prompt
 */
export async function ask(
  { model, tokenizer, isFromRun, ...policy }: Policy,
  question: string,
  { samples, answer, verbose, temperature = samples > 1 ? 1 : 0, ...given }: Asked,
  write: (text: string) => void,
): Promise<void> {
  const problem = { question, answer: answer ?? '', columns: {}, source: '' };
  const prompt = buildPrompt(tokenizer, problem, policy.options);
  const wanted = given.maxNewTokens ?? (isFromRun ? policy.options.maxNewTokens : ROOM);
  const free = Math.max(1, model.config.maxPositionEmbeddings - prompt.length);
  const maxNewTokens = given.maxNewTokens ?? Math.min(wanted, free);
  checkPrompts([{ prompt, source: 'the question' }], model.config, { maxNewTokens });
  if (verbose) write(`${harmless(tokenizer.decode(prompt))}\n`);

  let written = '';
  const grow = (_: number, { tokens }: Completion) => {
    const text = tokenizer.decode(tokens, { skipSpecialTokens: true });
    if (text.endsWith('\ufffd') || !text.startsWith(written)) return undefined; // a character of several tokens
    write(harmless(text.slice(written.length)));
    written = text;
    return undefined;
  };
  const options: Options = { ...policy.options, ...given, maxNewTokens, temperature, numGenerations: samples };
  // What rollout() does not know of, it passes on to generate().
  const more = samples === 1 && !verbose ? { react: grow } : {};
  const draw: Draw = (...token) => uniform(options.seed, 0, ...token);
  const rollouts = await rollout(model, tokenizer, [problem], draw, { ...options, ...more });
  for (const [i, row] of rollouts.entries()) {
    if (samples > 1) write(`${i + 1}: `);
    write(harmless(row.text.startsWith(written) ? row.text.slice(written.length) : `\n${row.text}`));
    if (row.finishReason === 'length') write(` … (cut after ${row.completion.length} tokens)`);
    if (answer !== undefined) write(`   reward ${row.reward}`);
    write('\n');
    if (verbose) write(tokenTable(row, (ids) => tokenizer.decode(ids)));
  }
}

/** A line for each token of an answer: its log-probability (nats), its probability, itself. */
function tokenTable({ completion, oldLogProbs }: Rollout, decode: (ids: number[]) => string): string {
  const lines = completion.map((id, i) => {
    const share = `${(100 * Math.exp(oldLogProbs[i])).toFixed(1)} %`;
    return `${oldLogProbs[i].toFixed(3).padStart(10)}${share.padStart(9)}  ${oneLine(JSON.stringify(decode([id])))}\n`;
  });
  return `${'log-prob'.padStart(10)}${'prob.'.padStart(9)}  token\n${lines.join('')}`;
}

async function main(): Promise<void> {
  const command = createCommand();
  const options = parseOptions(command);
  const [name, question = []] = command.processedArgs;
  if (question.length === 0 && !existsSync(name) && !name.includes('/')) {
    throw new UserError(
      `there is no folder ${shown(name)}: if it is the question, name the model first, as in npm run ask -- models/tiny ${shown(name)}`,
    );
  }
  const policy = await loadPolicy(name, options);
  if (options.answer !== undefined && policy.options.task) {
    console.log(
      `(the reward is that of experiment_base: the rules of --task ${policy.options.task} need more than an answer)`,
    );
  }
  const write = (text: string) => void process.stdout.write(text);
  if (question.length > 0) return ask(policy, question.join(' '), options, write);

  const isTerminal = Boolean(process.stdin.isTTY);
  if (isTerminal) console.log('A question a line, each by itself, as in training; Ctrl-D ends.');
  const lines = createInterface({
    input: process.stdin,
    output: isTerminal ? process.stdout : undefined,
    prompt: '> ',
  });
  if (isTerminal) lines.prompt();
  for await (const line of lines) {
    if (line.trim()) await ask(policy, line.trim(), options, write).catch(sayMistake);
    if (isTerminal) lines.prompt();
  }
  if (isTerminal) console.log(); // the shell goes on below the last prompt
}

/** One question that cannot be asked does not end the talk. */
function sayMistake(error: unknown): void {
  if (!(error instanceof UserError)) throw error;
  console.error(error.message);
}

await runMain(import.meta.url, main);
