import { readFileSync } from 'node:fs';
import { Command, CommanderError, InvalidArgumentError, Option, type OptionValues } from '@commander-js/extra-typings';
import { type CST, isMap, isScalar, isSeq, LineCounter, Parser, parseDocument } from 'yaml';
import { UserError } from '../errors.ts';
import { asText, kebab, NOT_TAKEN_OVER } from '../run/saved_options.ts';
import { cut, mistakeInName, oneLine, shown } from '../text.ts';

/**
 * Limits of a number. `min` and `max` are allowed values themselves, `above` and `below` are not. Without a `max` of its
 * own, no option takes more than {@link MAX}.
 */
export type Limits = { min?: number; max?: number; above?: number; below?: number };

/** The largest number that an option takes, unless it says otherwise. */
const MAX = 1e7;

/**
 * A parser for `.option('--batch-size <n>', 'help', integer({ min: 1 }), 16)`.
 * @returns a function from the text of an option to its value, which throws commander's InvalidArgumentError
 */
export function integer(limits: Limits = {}): (text: string) => number {
  return numberParser('an integer', Number.isSafeInteger, limits);
}

/** As {@link integer}, for any number that is neither too large nor too small for float32, in which all is computed. */
export function number(limits: Limits = {}): (text: string) => number {
  const isFloat32 = (value: number) => Number.isFinite(value) && (Math.fround(value) !== 0 || value === 0);
  return numberParser('a number', isFloat32, limits);
}

function numberParser(kind: string, isKind: (value: number) => boolean, limits: Limits) {
  const { min, above, below, max = below === undefined ? MAX : undefined } = limits;
  const rules: [bound: number | undefined, words: string, holds: (value: number, bound: number) => boolean][] = [
    [min, 'of at least', (value, bound) => value >= bound],
    [above, 'above', (value, bound) => value > bound],
    [max, 'of at most', (value, bound) => value <= bound],
    [below, 'below', (value, bound) => value < bound],
  ];
  const given = rules.filter(([bound]) => bound !== undefined);
  const words = given.map(([bound, words]) => `${words} ${bound}`).join(' and ');
  const expected = `${kind} ${min !== undefined && max !== undefined ? `from ${min} to ${max}` : words}`;
  return (text: string): number => {
    const value = text.trim() === '' ? Number.NaN : Number(text);
    const isWithin = given.every(([bound, , holds]) => holds(value, bound!));
    if (isWithin && isKind(value)) return value;
    const isTooSmall = isWithin && !Number.isInteger(value) && Math.fround(value) === 0;
    throw new InvalidArgumentError(`it must be ${expected}${isTooSmall ? '; in float32 this is 0' : ''}`);
  };
}

const listParsers = new WeakSet<object>();

/** Marks a parser of comma-separated values: in a `--config` file, its option may also be given as a list. */
export function commaSeparated<T>(parse: (text: string) => T): (text: string) => T {
  listParsers.add(parse);
  return parse;
}

/** `--reward-weights`: a number for each of these rewards, in their order, as in 1,1,1,0.5; all 1 unless told otherwise. */
export function rewardWeightsOption(rewards: readonly string[]) {
  const parse = (text: string): number[] => {
    const values = text.split(',').map((value) => (value.trim() === '' ? Number.NaN : Number(value)));
    if (values.length === rewards.length && values.every((value) => Math.abs(value) <= 1000)) return values;
    throw new InvalidArgumentError(`it must be ${rewards.length} numbers from -1000 to 1000, with commas between them`);
  };
  const ones = rewards.map(() => 1);
  return new Option('--reward-weights <list>', `of ${rewards}`)
    .argParser(commaSeparated(parse))
    .default(ones, `${ones}`);
}

/** Whether an option stands on the command line itself, and not in a file or among the options of a run that is resumed. */
export const isTyped = (option: string, argv: string[] = process.argv): boolean =>
  argv.slice(2).some((word) => word === option || word.startsWith(`${option}=`));

/** Command lines to end `--help` with: for `.addHelpText('after', examples(…))`. */
export const examples = (...lines: string[]): string =>
  ['', 'Examples:', ...lines.map((line) => `  ${line}`)].join('\n');

/** What a run that is resumed was started with, and the file that says so. */
export type Saved = { file: string; options: Record<string, unknown> };

/**
 * Parses the command line. Priority: command line, then the file named by `--config` (if the command has that option),
 * then the options of the run that is resumed, then defaults. Values from files pass the same parsers and choices.
 * `--help` and `--version` print and exit with 0.
 * @param command - options, none of them a `requiredOption`, and no arguments
 * @param argv - node, script, arguments
 * @param hooks.saved - is given the options so far, and returns those of the run that they resume, if they do
 * @throws {UserError} one sentence for any mistake on the command line or in a file
 */
export function parseOptions<Options extends OptionValues>(
  command: Command<unknown[], Options>,
  argv: string[] = process.argv,
  { saved }: { saved?: (options: Options) => Saved | undefined } = {},
): Options {
  command.exitOverride().configureOutput({ outputError: () => {} });
  const line = argv.slice(2);
  refuseLost(command, line);
  const { config } = parse(command, line);
  const fromConfig = typeof config === 'string' ? readConfig(command, config) : new Map<string, string[]>();
  const options = parse(command, [...[...fromConfig.values()].flat(), ...line]);
  const before = saved?.(options);
  if (before === undefined) return options;

  const fromSaved = new Map<string, string[]>();
  for (const [key, value] of Object.entries(before.options)) {
    if (!NOT_TAKEN_OVER.includes(key)) fromSaved.set(kebab(key), asArguments(command, key, asText(value), before.file));
  }
  return parse(command, [...[...new Map([...fromSaved, ...fromConfig]).values()].flat(), ...line]);
}

/** For a script that takes no options: prints its description for `--help`, and refuses anything else. */
export function parseNoOptions(name: string, description: string, argv?: string[]): void {
  parseOptions(new Command(name).description(description), argv);
}

/** Refuses a command line of which a part went elsewhere: a value that was left out, options that npm took for its own. */
function refuseLost(command: Command<unknown[], OptionValues>, line: string[]): void {
  for (const [i, word] of line.entries()) {
    const takesValue = command.options.some(
      (option) => option.required && (word === option.long || word === option.short),
    );
    const next = line[i + 1] ?? '';
    if (takesValue && next.startsWith('--')) {
      throw new UserError(`${word} has no value: ${next} follows; if that is to be it, write ${word}=${next}`);
    }
  }
  const { npm_lifecycle_event: script, ...environment } = process.env;
  const variable = (long = '') => `npm_config_${long.replace(/^--(no-)?/, '').replaceAll('-', '_')}`;
  const taken = command.options.find(({ long }) => environment[variable(long)] !== undefined);
  if (!script || !taken) return;
  const start = script === 'start' ? 'npm start' : `npm run ${script}`;
  throw new UserError(`npm took ${taken.long} for itself: put -- before the options, ${start} -- ${taken.long} …`);
}

/** Commander, with its errors as {@link UserError}s. */
function parse<Options extends OptionValues>(
  command: Command<unknown[], Options>,
  line: string[],
  where = '',
): Options {
  try {
    const options = command.parse(line, { from: 'user' }).opts();
    refuseNames(command, options, where);
    return options;
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) process.exit(0);
    throw new UserError(where + (error.code === 'commander.excessArguments' ? excess(command) : oneSentence(error)));
  }
}

/** Refuses what no file system takes as the name of a file, a folder or a model. */
function refuseNames(command: Command<unknown[], OptionValues>, options: OptionValues, where: string): void {
  for (const option of command.options) {
    const value = options[option.attributeName()];
    const mistake =
      /<(file|folder|dir|name|run|gpu)>/.test(option.flags) && typeof value === 'string' && mistakeInName(value);
    if (mistake) throw new UserError(`${where}${option.long}: ${mistake}, found ${shown(value)}`);
  }
}

function excess(command: Command<unknown[], OptionValues>): string {
  const { length } = command.registeredArguments;
  const takes = length === 0 ? 'options only' : command.usage();
  return `unexpected argument '${command.args[length]}': this script takes ${takes}, see --help`;
}

function oneSentence(error: CommanderError): string {
  const text = error.message
    .replace(/^error: /, '')
    .replace(/(?<=argument ').*(?=' is invalid\. )/s, (value) => cut(oneLine(value), 120))
    .replace(/ is invalid\. (\w)/, (_, letter: string) => ` is invalid: ${letter.toLowerCase()}`)
    .replace(/^(unknown option '[^'=]+)=.*'/, "$1'")
    .replace(/\s*\n\s*/g, ' ');
  return error.code === 'commander.unknownOption' && !text.includes('Did you mean') ? `${text}, see --help` : text;
}

/** Characters that a `--config` file may have, and levels within each other: too many of them end the whole process. */
const MAX_CONFIG = 2 ** 16;
const MAX_NESTING = 100;

/** How many levels of a YAML file lie within each other, without recursion. */
function nesting(text: string): number {
  let level: CST.Token[] = [...new Parser().parse(text)];
  for (let depth = 0; ; depth++) {
    if (level.length === 0) return depth;
    level = level.flatMap((token) => {
      const inside = 'items' in token ? token.items.flatMap(({ key, value }) => [key, value]) : [];
      return [...inside, token.type === 'document' ? token.value : undefined].filter((child) => child != null);
    });
  }
}

/** Reads a YAML or JSON file (JSON is YAML) as command line arguments, by the name of the option. */
function readConfig<Options extends OptionValues>(
  command: Command<unknown[], Options>,
  file: string,
): Map<string, string[]> {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new UserError(`--config: cannot read ${file} (${(error as NodeJS.ErrnoException).code})`);
  }
  if (text.length > MAX_CONFIG || nesting(text) > MAX_NESTING) {
    throw new UserError(`--config: ${file} is too long, or too deeply nested: expected one "option: value" a line`);
  }
  const lines = new LineCounter();
  // The failsafe schema leaves every scalar the text that was written, which is what option parsers take.
  const document = parseDocument(text, { schema: 'failsafe', lineCounter: lines, prettyErrors: false });
  const at = (offset = 0) => `${file}:${lines.linePos(offset).line}`;
  if (document.errors.length > 0) {
    const { pos, message } = document.errors[0];
    throw new UserError(`${at(pos[0])}: not valid YAML: ${message}`);
  }
  if (!isMap(document.contents)) throw new UserError(`${at()}: expected one "option: value" a line`);
  const found = new Map<string, string[]>();
  for (const { key, value } of document.contents.items) {
    const where = at(isScalar(key) ? key.range?.[0] : undefined);
    const name = kebab(String(key));
    if (name === 'config') throw new UserError(`${where}: "${key}" cannot stand in a file, only on the command line`);
    if (found.has(name)) throw new UserError(`${where}: "${key}" was set above already`);
    const { parseArg } = command.options.find((option) => option.long === `--${name}`) ?? {};
    const isList = isSeq(value) && value.items.every(isScalar) && parseArg !== undefined && listParsers.has(parseArg);
    if (value !== null && !isScalar(value) && !isList)
      throw new UserError(`${where}: "${key}" must be a single value, not a list or mapping`);
    const text = isList ? value.items.join(',') : String(value ?? '');
    if (['', 'null', '~'].includes(text)) throw new UserError(`${where}: "${key}" has no value`);
    found.set(name, asArguments(command, String(key), text, where));
  }
  return found;
}

/** One value of a file as command line arguments, checked on its own so that the message can say where it stands. */
function asArguments<Options extends OptionValues>(
  command: Command<unknown[], Options>,
  key: string,
  value: string,
  where: string,
): string[] {
  const name = kebab(key);
  const yes = command.options.find((option) => option.long === `--${name}`);
  const no = command.options.find((option) => option.long === `--no-${name}`);
  let line = [`--${name}=${value}`];
  if (yes?.isBoolean() || (no && !yes)) {
    if (value !== 'true' && value !== 'false') {
      throw new UserError(`${where}: "${key}" must be true or false, found "${value}"`);
    }
    // Where a flag is missing, its value is the default.
    const flag = value === 'true' ? yes : no;
    line = flag ? [flag.long!] : [];
  }
  parse(command, line, `${where}: `);
  return line;
}
