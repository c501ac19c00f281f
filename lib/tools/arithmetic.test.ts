import { describe, expect, test } from 'vitest';
import { uniform } from '../run/random.ts';
import { calculate } from './arithmetic.ts';
import { createCalculator } from './calculator.ts';
import { callTool } from './tool.ts';

const NUMBER = /^(?!-0$)-?(0|[1-9]\d*)(\.\d*[1-9])?$/;

/** Milliseconds that a calculation takes: the fastest of some tries, because the machine may be busy with other things. */
function time(expression: string): number {
  let fastest = Infinity;
  for (let i = 0; i < 4 && fastest > 10; i++) {
    const start = performance.now();
    calculate(expression);
    fastest = Math.min(fastest, performance.now() - start);
  }
  return fastest;
}

/** A stream of draws: a whole number below n, or one of some choices. */
function chance(seed: number) {
  let draws = 0;
  const below = (n: number) => Math.floor(uniform(seed, draws++) * n);
  return { below, pick: <T>(choices: T[]) => choices[below(choices.length)] };
}

const RESULTS: Record<string, string> = {
  '41589 + 1': '41590',
  '0.1+0.2': '0.3',
  '10/4*4': '10',
  '2.50 * 4.0': '10',
  '.5 + 5.': '5.5',
  '1/3': '0.333333333333',
  '2/3': '0.666666666667',
  '-2/3': '-0.666666666667',
  '5/10^13': '0.000000000001',
  '4/10^13': '0',
  '-4/10^13': '0',
  '-0': '0',
  '100000*1000000': '100000000000',
  '12345678901234567890*98765432109876543210': '1219326311370217952237463801111263526900',
  '10^49*9+1/8': `9${'0'.repeat(49)}.125`,
  '1/3*3 - 1': '0',
  '1/(1/3)/3 + 10^40 - 10^40': '1',
  '2+3*4^2': '50',
  '(2+3)*4': '20',
  '10-4-3': '3',
  '48/2/3': '8',
  '-2^2': '-4',
  '(-2)^3': '-8',
  '2^3^2': '512',
  '2^-2': '0.25',
  '(2/3)^-3': '3.375',
  '0^0': '1',
  '1.05^30': '4.321942375151',
  '1.005^360': '6.022575212263',
  '2--3': '5',
  '- - 3 + +4': '7',
  '−3 × 4 ÷ 2': '-6',
  '5!': '120',
  '3!!': '720',
  '40!/39!': '40',
  'factorial(0)': '1',
  'sqrt(16)': '4',
  'sqrt(2)': '1.414213562373',
  'sqrt(2)*10^30': '1414213562373095048801688724209.698078569672',
  'sqrt(10^40+1)': '100000000000000000000',
  'floor(sqrt(1/9)*3)': '1',
  'floor(sqrt(2)^2)': '2',
  'floor(10/3*3)': '10',
  'floor(10^49/3*3)': `1${'0'.repeat(49)}`,
  'round(1/3*1.5)': '1',
  '10^49/3*3 - 10^49': '0',
  'floor(-2.5)': '-3',
  'floor(pi*10^11)': '314159265358',
  'ceil(2.1)': '3',
  'round(2.5)': '3',
  'round(-2.5)': '-3',
  'round(-0.4)': '0',
  'round(2.345, 2)': '2.35',
  'round(pi, 4)': '3.1416',
  'abs(-3/4)': '0.75',
  'min(3, 1/2, pi)': '0.5',
  'max(3, 1/2, pi)': '3.14159265359',
  'gcd(12, 18)': '6',
  'lcm(4, 6)': '12',
  'gcd(sqrt(2)^2, 6)': '2',
  'mod(-7, 3)': '2',
  '7.5 mod 2': '1.5',
  'pow(2, 10)': '1024',
  'pi*2': '6.28318530718',
  'e^10': '22026.465794806717',
};

const ERRORS: Record<string, string> = {
  '9^9^9': 'the exponent is too large',
  '2^10000': 'the numbers become too large',
  '10^50': 'the numbers become too large',
  'factorial(1e6)': 'a letter right after a number',
  'factorial(1000000)': 'a whole number from 0 to 40 is expected',
  '(-1)!': 'a whole number from 0 to 40 is expected',
  '1.5!': 'a whole number is expected',
  '2^0.5': 'a whole number is expected',
  '(-8)^(1/3)': 'a whole number is expected',
  'gcd(1.5, 3)': 'a whole number is expected',
  '2^(1/3)': 'a whole number is expected',
  'zeros(1e6,1e6)': 'a letter right after a number',
  'zeros(1000000,1000000)': 'a function or an operator that is not known',
  '1/0': 'division by zero',
  '1/(1/3*3-1)': 'division by zero',
  '0^-1': 'division by zero',
  'mod(7, 0)': 'division by zero',
  'sqrt(-1)': 'something that is not a real number',
  'round(1, 13)': 'a whole number from 0 to 12 is expected',
  'sqrt(1, 2)': 'the wrong number of arguments for sqrt',
  'gcd(2, 4, 6)': 'the wrong number of arguments for gcd',
  'abs()': 'the wrong number of arguments for abs',
  [`${'('.repeat(21)}1${')'.repeat(21)}`]: 'parentheses nested more than 20 deep',
  ['('.repeat(150)]: 'parentheses nested more than 20 deep',
  [`1${'+1'.repeat(100)}`]: 'more than 200 characters',
  ['9'.repeat(51)]: 'the numbers become too large',
  '': 'there is no expression',
  ' \t': 'there is no expression',
  '1+': 'this is not a well-formed expression',
  '(1': 'this is not a well-formed expression',
  '1)': 'this is not a well-formed expression',
  '1,234': 'this is not a well-formed expression',
  '2**3': 'this is not a well-formed expression',
  '2(3)': 'a * is missing',
  '2 pi': 'a * is missing',
  '1e5': 'a letter right after a number',
  '0x1F': 'a letter right after a number',
  '50%': '% is not known, write x/100 or mod(x, y)',
  [`${'1%('.repeat(20)}1${')'.repeat(20)}`]: '% is not known, write x/100 or mod(x, y)',
  NaN: 'something that is not a real number',
  Infinity: 'something that is not a real number',
  true: 'something that is not a real number',
  null: 'something that is not a real number',
  undefined: 'something that is not a real number',
  x: 'a name that is not known',
  sqrt: 'a name that is not known',
  i: 'a name that is not known',
  constructor: 'a name that is not known',
  toString: 'a name that is not known',
  'constructor(1)': 'a function or an operator that is not known',
  'toString(1)': 'a function or an operator that is not known',
  'hasOwnProperty(1)': 'a function or an operator that is not known',
  'evaluate(1)': 'a function or an operator that is not known',
  '3 to 4': 'a function or an operator that is not known',
  'not 3': 'a function or an operator that is not known',
  '2.*3': 'a function or an operator that is not known',
  __proto__: 'only numbers, + - * / ^ ! ( ) and functions are known',
  'a = 1': 'only numbers, + - * / ^ ! ( ) and functions are known',
  '[1, 2]': 'only numbers, + - * / ^ ! ( ) and functions are known',
  '"1"': 'only numbers, + - * / ^ ! ( ) and functions are known',
  '1:3': 'only numbers, + - * / ^ ! ( ) and functions are known',
  '1 > 0 ? 1 : 2': 'only numbers, + - * / ^ ! ( ) and functions are known',
  '1\n2': 'only numbers, + - * / ^ ! ( ) and functions are known',
};

describe('examples', () => {
  test.each(Object.entries(RESULTS))('%s is %s', (expression, text) => {
    expect(calculate(expression)).toEqual({ ok: true, text });
    expect(time(expression)).toBeLessThan(50);
  });

  test.each(Object.entries(ERRORS))('%s: %s', (expression, clause) => {
    expect(calculate(expression)).toEqual({ ok: false, text: `error: ${clause}` });
    expect(time(expression)).toBeLessThan(50);
  });

  test('the tool takes plain text', async () => {
    const calculator = await createCalculator();
    expect(await callTool(calculator, ' 6 * 7\n', { toolTimeout: 1 })).toEqual({ ok: true, text: '42' });
    expect(await callTool(calculator, 'x', { toolTimeout: 1 })).toMatchObject({ ok: false });
  });
});

describe('generated expressions', () => {
  const { below, pick } = chance(1);

  /** A fraction in lowest terms, d > 0; or null for what cannot be calculated. */
  type Rational = { n: bigint; d: bigint } | null;

  function rational(n: bigint, d: bigint): Rational {
    if (d === 0n) return null;
    const abs = (x: bigint) => (x < 0n ? -x : x);
    let [a, b] = [abs(n), abs(d)];
    while (b !== 0n) [a, b] = [b, a % b];
    const lowest = { n: (d < 0n ? -n : n) / a, d: abs(d) / a };
    return abs(lowest.n) < lowest.d * 10n ** 50n ? lowest : null;
  }

  const COMPUTE: Record<string, (x: NonNullable<Rational>, y: NonNullable<Rational>) => Rational> = {
    '+': (x, y) => rational(x.n * y.d + y.n * x.d, x.d * y.d),
    '-': (x, y) => rational(x.n * y.d - y.n * x.d, x.d * y.d),
    '*': (x, y) => rational(x.n * y.n, x.d * y.d),
    '/': (x, y) => rational(x.n * y.d, x.d * y.n),
    '^': (x, { n }) => (n < 0n ? rational(x.d ** -n, x.n ** -n) : rational(x.n ** n, x.d ** n)),
  };

  /** How an exact result must be written: rounded half away from zero to 12 decimals. */
  function toText({ n, d }: NonNullable<Rational>): string {
    const scaled = (2n * 10n ** 12n * (n < 0n ? -n : n) + d) / (2n * d);
    const digits = `${scaled}`.padStart(13, '0');
    const text = `${digits.slice(0, -12)}.${digits.slice(-12)}`.replace(/\.?0+$/, '');
    return n < 0n && scaled > 0n ? `-${text}` : text;
  }

  /** How tightly an expression holds together: what needs more than it has must put it into parentheses. */
  const [SUM, PRODUCT, UNARY, POWER, ATOM] = [1, 2, 3, 4, 5];
  type Tree = { text: string; level: number; value: Rational };

  const space = () => pick(['', '', '', ' ', '  ']);

  function needs(level: number, tree: Tree): string {
    let { text } = tree;
    if (tree.level < level) text = `(${space()}${text}${space()})`;
    while (below(10) === 0) text = `(${space()}${text}${space()})`;
    return text;
  }

  function literal(): Tree {
    const whole = pick([below(10), below(10), below(1000), `${1 + below(1e9)}${below(1e9)}${below(1e9)}`]);
    const decimals = pick(['', '', `${below(10)}`, `${below(1000)}0`]);
    const value = rational(BigInt(`${whole}${decimals}`), 10n ** BigInt(decimals.length));
    return { text: decimals === '' ? `${whole}` : `${whole}.${decimals}`, level: ATOM, value };
  }

  function binary(sign: string, level: number, left: Tree, right: Tree, [l, r]: [number, number]): Tree {
    const value = left.value && right.value && COMPUTE[sign](left.value, right.value);
    const written = pick([sign, sign, sign, { '-': '−', '*': '×', '/': '÷' }[sign] ?? sign]);
    return { text: `${needs(l, left)}${space()}${written}${space()}${needs(r, right)}`, level, value };
  }

  function negative(tree: Tree): Tree {
    const value = tree.value && rational(-tree.value.n, tree.value.d);
    return { text: `-${space()}${needs(UNARY, tree)}`, level: UNARY, value };
  }

  function exponent(): Tree {
    const small = (n: number): Tree => ({ text: `${n}`, level: ATOM, value: rational(BigInt(n), 1n) });
    return pick([
      () => small(below(5)),
      () => negative(small(below(5))),
      () => binary('^', POWER, small(below(3)), small(below(3)), [ATOM, UNARY]), // the right one goes first
      () => binary('-', SUM, small(below(5)), small(below(3)), [SUM, PRODUCT]),
    ])();
  }

  function generate(depth: number): Tree {
    if (depth === 0 || below(8) === 0) return literal();
    const sub = () => generate(depth - 1);
    return pick([
      () => binary(pick(['+', '-']), SUM, sub(), sub(), [SUM, PRODUCT]),
      () => binary(pick(['*', '/']), PRODUCT, sub(), sub(), [PRODUCT, UNARY]),
      () => binary(pick(['+', '-', '*', '/']), SUM, sub(), sub(), [ATOM, ATOM]),
      () => negative(sub()),
      () => binary('^', POWER, sub(), exponent(), [ATOM, UNARY]),
    ])();
  }

  test('10,000 are calculated as by another implementation', () => {
    const counts = { whole: 0, fraction: 0, error: 0 };
    const wrong = [];
    for (let i = 0; i < 10_000; ) {
      const { text, value } = generate(1 + below(5));
      if (text.length > 200) continue;
      const expected = value === null ? 'error' : toText(value);
      counts[value === null ? 'error' : expected.includes('.') ? 'fraction' : 'whole']++;
      const result = calculate(text);
      if ((result.ok ? result.text : 'error') !== expected) wrong.push({ text, expected, result });
      i++;
    }
    expect(wrong).toEqual([]);
    for (const count of Object.values(counts)) expect(count).toBeGreaterThan(500);
  });
});

describe('hostile expressions', () => {
  const { below, pick } = chance(2);
  const repeat = (text: string, most = 120) => text.repeat(1 + below(most));

  const words = (text: string) => () => pick(text.split(' '));

  const name = words(
    'constructor __proto__ prototype toString valueOf hasOwnProperty isPrototypeOf this globalThis process require ' +
      'Function eval import evaluate parse simplify compile derivative createUnit config typed chain parser resolve ' +
      'reviver print zeros ones range combinations gamma factorial pow sqrt lcm round unaryMinus add to in mod not and ' +
      'or xor end i e pi true null NaN Infinity undefined',
  );
  const object = words('1 (1) pi [] {} "" sqrt sqrt(4) this');
  const operator = words("+ - * / ^ == > ? : , | ' .* ./ .^ ; & = ?? ?. ! %");
  const strange = words(
    '\u202e \u200f １２ 😀 \0 \ud800 \udc00 \x1b[2J \u2028 \u00a0 \ufeff \x7f ı \u212a 1\r\n2 \\ ` $1 // /*',
  );
  const tower = words('9^ 2^- 1.1^ 0.5^ pi^ 2^0.1^ (1/3)^ 9^9* 7^.1* e^pi+ 1.7^9999/ 1/97+1/89+ sqrt(2)* 40!* .3^-99*');
  const big = words('9999999999 40! 2^99-1 sqrt(3)^2 10^-49 -1.1^999 1/3^99 0 -0 1e9 12586269025^4 7778742049^4');
  const nest = words(
    '( sqrt( abs(- max(1, lcm(6, 2^( 1-( 1%( 1%-( 2mod( [ {a: 1?1:( f(x)=( 1/(1+ factorial( ((( floor(1.5*',
  );
  const matrix = words('[1,2;3,4] [1:1000000] 1:1e9 zeros(1e6,1e6) ones(99999,99999) [[[[1]]]] {a:{b:1}}.a.b [1,2][1]');
  const other = words(
    '"a" \'a\' "\\u0041" 5cm 3inch 2in 1<<99 0x1i8 0b1 0x1F NaN -Infinity a?.b 1;;2 1;2 f(x)=x [] {} ()',
  );

  const KINDS: (() => string)[] = [
    name,
    matrix,
    other,
    () => `${name()}.${name()}.${name()}`,
    () => `${object()}["${name()}"]${pick(['', '()', '("return 1")()'])}`,
    () => `${object()}.${name()}${pick(['', '()', '("return 1")()'])}`,
    () => `${name()}(${pick(['', '1', '1,2', '40,40,40', '"1+1"', '{a:1}', '9999999999,9999999999', hostile()])})`,
    () => `${name()}${pick(['', '(x)', '.a', '[1]'])} = ${hostile()}`,
    () => `${pick(['9', 'e', '0.1', '(-3)', '99999999999'])}^${pick(['', '-'])}${repeat('9', 40)}`,
    () => `${repeat(tower(), 70)}${below(10)}`,
    () => `${below(1e6)}${repeat('!')}`,
    () => `factorial(${pick(['1e6', '999999', '-1', '0.5', '40', '1/0', hostile()])})`,
    () => `${repeat(nest())}1${repeat(')')}`,
    () => {
      const depth = 1 + below(pick([20, 200, 10_000]));
      return `${nest().repeat(depth)}1${')'.repeat(depth)}`;
    },
    () => `${repeat(pick(['-', '+', '~', 'not ', '- ', '-+']), 200)}1`,
    () => `${pick(['max', 'min', 'lcm'])}(${repeat(`${big()},`, 25)}1)`,
    () => `${pick(['gcd', 'lcm', 'mod', 'pow', 'round', 'divide', 'f'])}(${big()}, ${big()})`,
    () => `1${strange()}+${strange()}1`,
    () => `${hostile()}${pick(['\n', '\r\n', ';', '#', '\0', ' # ', '\n\n'])}${hostile()}`,
    () => Array.from({ length: 1 + below(60) }, () => String.fromCharCode(below(0x10000))).join(''),
    () => Array.from({ length: 1 + below(60) }, () => pick([...'0123456789+-*/^!(),. %eπi'])).join(''),
    () => `${repeat('9', 250)}${pick(['', '.', '*', '^', '/'])}${repeat('7', 250)}`,
    () => `0.${repeat('0', 190)}1${pick(['', '^-1', '^99', '*3', '!'])}`,
    () => `${below(10)}${pick(['e', 'E'])}${pick(['', '-', '+'])}${repeat('9', 12)}`,
    () => `${hostile()} ${operator()} ${hostile()}`,
    () => `(${hostile()})${pick(['(1)', '[1]', '.re', '!', "'", '^2', ''])}`,
  ];
  const MEGABYTE = ['(', '9', '1+', ' ', '-', '😀', 'a.', '\0'].map((text) => text.repeat(1e6 / text.length));

  function hostile(): string {
    return pick(KINDS)();
  }

  test('2,000 come back at once, with a number or an error, and leave nothing behind', () => {
    const shared = [globalThis, Math, JSON, Object, Object.prototype, Array.prototype, Function.prototype];
    const everything = () => shared.map((object) => Object.entries(Object.getOwnPropertyDescriptors(object)));
    const expressions = [...MEGABYTE, ...Array.from({ length: 2000 - MEGABYTE.length }, hostile)];
    const before = everything();
    const wrong = [];
    const slow = [];
    let numbers = 0;
    for (const expression of expressions) {
      const { ok, text } = calculate(expression);
      const good = ok ? NUMBER.test(text) : /^error: [^\n]+$/.test(text);
      if (typeof ok !== 'boolean' || !good || text.length >= 200) wrong.push({ expression, ok, text });
      if (ok) numbers++;
      const milliseconds = time(expression);
      if (milliseconds >= 50) slow.push({ expression: expression.slice(0, 300), milliseconds });
    }
    expect(wrong).toEqual([]);
    expect(slow).toEqual([]);
    expect(everything()).toEqual(before);
    expect(calculate('1+1')).toEqual({ ok: true, text: '2' });
    expect(numbers).toBeGreaterThan(100); // the grammar also comes as far as the arithmetic
  });
});
