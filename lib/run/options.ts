import { readFileSync } from 'node:fs';
import { type Command, CommanderError, InvalidArgumentError, type OptionValues } from '@commander-js/extra-typings';
import { isMap, isScalar, isSeq, LineCounter, parseDocument } from 'yaml';
import { UserError } from './errors.ts';

/** Limits of a number. `min` and `max` are allowed values themselves, `above` and `below` are not. */
export type Limits = { min?: number; max?: number; above?: number; below?: number };

/**
 * A parser for `.option('--batch-size <n>', 'help', integer({ min: 1 }), 16)`.
 * @returns a function from the text of an option to its value, which throws commander's InvalidArgumentError
 */
export function integer(limits: Limits = {}): (text: string) => number {
  return numberParser('an integer', Number.isSafeInteger, limits);
}

/** As {@link integer}, for any finite number. */
export function number(limits: Limits = {}): (text: string) => number {
  return numberParser('a number', Number.isFinite, limits);
}

function numberParser(kind: string, isKind: (value: number) => boolean, { min, max, above, below }: Limits) {
  const rules: [bound: number | undefined, words: string, holds: (value: number, bound: number) => boolean][] = [
    [min, 'of at least', (value, bound) => value >= bound],
    [above, 'above', (value, bound) => value > bound],
    [max, 'of at most', (value, bound) => value <= bound],
    [below, 'below', (value, bound) => value < bound],
  ];
  const given = rules.filter(([bound]) => bound !== undefined);
  const expected = [kind, given.map(([bound, words]) => `${words} ${bound}`).join(' and ')].filter(Boolean).join(' ');
  return (text: string): number => {
    const value = text.trim() === '' ? Number.NaN : Number(text);
    if (isKind(value) && given.every(([bound, , holds]) => holds(value, bound!))) return value;
    throw new InvalidArgumentError(`it must be ${expected}`);
  };
}

const listParsers = new WeakSet<object>();

/** Marks a parser of comma-separated values: in a `--config` file, its option may also be given as a list. */
export function commaSeparated<T>(parse: (text: string) => T): (text: string) => T {
  listParsers.add(parse);
  return parse;
}

/** Command lines to end `--help` with: for `.addHelpText('after', examples(…))`. */
export const examples = (...lines: string[]): string =>
  ['', 'Examples:', ...lines.map((line) => `  ${line}`)].join('\n');

/** What a run that is resumed was started with, and the file that says so. */
export type Saved = { file: string; options: Record<string, unknown> };

/** Options of one call of a script: a resumed run does not take them over. */
const NOT_TAKEN_OVER = ['resume', 'config', 'outputDir'];

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
  command: Command<[], Options>,
  argv: string[] = process.argv,
  { saved }: { saved?: (options: Options) => Saved | undefined } = {},
): Options {
  command.exitOverride().configureOutput({ outputError: () => {} });
  const line = argv.slice(2);
  const { config } = parse(command, line);
  const fromConfig = typeof config === 'string' ? readConfig(command, config) : new Map<string, string[]>();
  const options = parse(command, [...[...fromConfig.values()].flat(), ...line]);
  const before = saved?.(options);
  if (before === undefined) return options;

  const fromSaved = new Map<string, string[]>();
  for (const [key, value] of Object.entries(before.options)) {
    if (!NOT_TAKEN_OVER.includes(key)) fromSaved.set(kebab(key), asArguments(command, key, String(value), before.file));
  }
  return parse(command, [...[...new Map([...fromSaved, ...fromConfig]).values()].flat(), ...line]);
}

/** Commander, with its errors as {@link UserError}s. */
function parse<Options extends OptionValues>(command: Command<[], Options>, line: string[], where = ''): Options {
  try {
    return command.parse(line, { from: 'user' }).opts();
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) process.exit(0);
    throw new UserError(where + (error.code === 'commander.excessArguments' ? excess(command) : oneSentence(error)));
  }
}

function excess(command: Command<[], OptionValues>): string {
  return `unexpected argument '${command.args[0]}': this script takes options only, see --help`;
}

function oneSentence(error: CommanderError): string {
  const text = error.message
    .replace(/^error: /, '')
    .replace(/ is invalid\. (\w)/, (_, letter: string) => ` is invalid: ${letter.toLowerCase()}`)
    .replace(/^(unknown option '[^'=]+)=.*'/, "$1'")
    .replace(/\s*\n\s*/g, ' ');
  return error.code === 'commander.unknownOption' && !text.includes('Did you mean') ? `${text}, see --help` : text;
}

/** Reads a YAML or JSON file (JSON is YAML) as command line arguments, by the name of the option. */
function readConfig<Options extends OptionValues>(command: Command<[], Options>, file: string): Map<string, string[]> {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new UserError(`--config: cannot read ${file} (${(error as NodeJS.ErrnoException).code})`);
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
    found.set(name, asArguments(command, String(key), text, where));
  }
  return found;
}

/** batchSize, batch_size → batch-size */
function kebab(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`).replaceAll('_', '-');
}

/** One value of a file as command line arguments, checked on its own so that the message can say where it stands. */
function asArguments<Options extends OptionValues>(
  command: Command<[], Options>,
  key: string,
  value: string,
  where: string,
): string[] {
  if (['', 'null', '~'].includes(value)) throw new UserError(`${where}: "${key}" has no value`);
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
