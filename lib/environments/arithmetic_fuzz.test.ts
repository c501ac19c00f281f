import { describe, expect, test } from 'vitest';
import { time } from '../../testing/time.ts';
import { uniform } from '../random.ts';
import { calculate } from './arithmetic.ts';

const NUMBER = /^(?!-0$)-?(0|[1-9]\d*)(\.\d*[1-9])?$/;

/** A stream of draws: a whole number below n, or one of some choices. */
function chance(seed: number) {
  let draws = 0;
  const below = (n: number) => Math.floor(uniform(seed, draws++) * n);
  return { below, pick: <T>(choices: T[]) => choices[below(choices.length)] };
}

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
