/**
 * A calculator. mathjs parses and does the arithmetic, but it never evaluates: what a policy writes is walked here, and
 * nothing but the operations of a short list is ever computed, none of them on numbers that would take long.
 */
import { all, type BigNumber, create, type MathNode } from 'mathjs';
import type { ToolResult } from './tool.ts';

// 128 digits, of which a result shows 62 at most: 1/3*3 - 1 is then 0. What is within the tolerance of a whole number is
// taken for it, or else floor(1/3*3) would be 0; the usual tolerance, 1e-12, would round floor(pi*10^11) up.
const math = create(all!, { number: 'BigNumber', precision: 128, relTol: 1e-100, absTol: 1e-100 });

const MAX_LENGTH = 200;
const MAX_DEPTH = 20;
const MAX_VALUE = math.bignumber('1e50');
const MAX_EXPONENT = math.bignumber(10_000);
const MAX_FACTORIAL = math.bignumber(40);
/** Places after the point. */
const MAX_DECIMALS = math.bignumber(12);

/** A calculation that is not done. The message is one short clause. */
class Refusal extends Error {}

function refuse(clause: string): never {
  throw new Refusal(clause);
}

// Maps, because an object would also have a `constructor`.
const CONSTANTS = new Map([
  ['pi', math.bignumber(-1).acos()],
  ['e', math.bignumber(1).exp()],
]);

type Compute = (...values: BigNumber[]) => unknown;

/** All that is ever computed: the operators, as mathjs names them, and the functions; how many arguments they take. */
const OPERATIONS = new Map<string, [least: number, most: number, compute: Compute]>([
  ['unaryPlus', [1, 1, math.unaryPlus]],
  ['unaryMinus', [1, 1, math.unaryMinus]],
  ['add', [2, 2, math.add]],
  ['subtract', [2, 2, math.subtract]],
  ['multiply', [2, 2, math.multiply]],
  ['divide', [2, 2, (x, y) => math.divide(x, divisor(y))]],
  ['mod', [2, 2, (x, y) => math.mod(x, divisor(y))]],
  ['pow', [2, 2, power]],
  ['factorial', [1, 1, (x) => math.factorial(whole(x, MAX_FACTORIAL))]],
  ['sqrt', [1, 1, math.sqrt]],
  ['abs', [1, 1, math.abs]],
  ['floor', [1, 1, math.floor]],
  ['ceil', [1, 1, math.ceil]],
  ['round', [1, 2, (x, places = math.bignumber(0)) => math.round(x, whole(places, MAX_DECIMALS))]],
  ['min', [1, MAX_LENGTH, math.min]],
  ['max', [1, MAX_LENGTH, math.max]],
  ['gcd', [2, 2, (x, y) => math.gcd(whole(x), whole(y))]],
  ['lcm', [2, 2, (x, y) => math.lcm(whole(x), whole(y))]],
]);

/**
 * Calculates, with 128 digits: + - * / ^ ! and parentheses, `a mod b`, the functions of the table above, pi and e. × ÷ −
 * are understood as well. Not known are products without a sign (2(3)), exponents that are not whole, thousands
 * separators (nor what looks like one: max(1,500) needs a space), 1e5, and %, which to mathjs is a percentage or a remainder depending on what follows.
 * @param expression - at most 200 characters; parentheses nested at most 20 deep; all numbers below 10^50
 * @returns a decimal number without an exponent, rounded half away from zero to 12 decimals (2/3 is 0.666666666667) and
 *   without needless zeros; or, not ok, `error: ` and a short clause. It never throws.
 */
export function calculate(expression: string): ToolResult {
  try {
    return { ok: true, text: math.round(evaluate(parse(expression)), MAX_DECIMALS).toFixed() };
  } catch (error) {
    return { ok: false, text: `error: ${error instanceof Refusal ? error.message : 'this cannot be calculated'}` };
  }
}

/** The tree of an expression. All that could keep the parser busy for long is refused before. */
function parse(expression: string): MathNode {
  if (expression.length > MAX_LENGTH) refuse(`more than ${MAX_LENGTH} characters`);
  if (expression.trim() === '') refuse('there is no expression');
  const text = expression.replaceAll('×', '*').replaceAll('÷', '/').replaceAll('−', '-');
  // After a % the parser reads ahead and starts again: nested in parentheses, that takes 2^depth steps.
  if (text.includes('%')) refuse('% is not known, write x/100 or mod(x, y)');
  if (!/^[\da-z \t.,+\-*/^!()]*$/i.test(text)) refuse('only numbers, + - * / ^ ! ( ) and functions are known');
  if (/\d,\d{3}(?!\d)/.test(text)) refuse('a comma between digits, write 12500, or 12, 500');
  if (/[\d.][a-z]/i.test(text)) refuse('a letter right after a digit or a point');
  let depth = 0;
  for (const character of text) {
    if (character === '(') depth++;
    if (character === ')') depth--;
    if (depth > MAX_DEPTH) refuse(`parentheses nested more than ${MAX_DEPTH} deep`);
  }
  try {
    return math.parse(text);
  } catch {
    return refuse('this is not a well-formed expression');
  }
}

/** The value of a tree, each node of which must be of a kind that is listed here. */
function evaluate(node: MathNode): BigNumber {
  if (math.isParenthesisNode(node)) return evaluate(node.content);
  if (math.isConstantNode(node)) return checked(node.value);
  if (math.isSymbolNode(node)) return CONSTANTS.get(node.name) ?? refuse('a name that is not known');
  let name: string;
  if (math.isOperatorNode(node)) name = node.implicit ? refuse('a * is missing') : node.fn;
  else if (math.isFunctionNode(node) && math.isSymbolNode(node.fn)) name = node.fn.name;
  else return refuse('something that is not arithmetic');
  const [least, most, compute] = OPERATIONS.get(name) ?? refuse('a function or an operator that is not known');
  const values = node.args.map(evaluate);
  if (values.length < least || values.length > most) refuse(`the wrong number of arguments for ${name}`);
  return checked(compute(...values));
}

/** A number that one may go on with: no complex number (the root of -1), no text, no NaN, and not too large. */
function checked(value: unknown): BigNumber {
  if (!math.isBigNumber(value) || value.isNaN()) return refuse('something that is not a real number');
  return value.abs().lt(MAX_VALUE) ? value : refuse('the numbers become too large');
}

function divisor(value: BigNumber): BigNumber {
  return math.isZero(value) ? refuse('division by zero') : value;
}

/** A whole number; from 0 to `most`, if that is given. */
function whole(value: BigNumber, most?: BigNumber): BigNumber {
  if (!math.isInteger(value)) refuse('a whole number is expected');
  if (most && (value.lt(0) || value.gt(most))) refuse(`a whole number from 0 to ${most} is expected`);
  return value.round();
}

/** Only whole exponents: with others, 128 digits take milliseconds. */
function power(base: BigNumber, exponent: BigNumber): unknown {
  if (exponent.abs().gt(MAX_EXPONENT)) refuse('the exponent is too large');
  return math.pow(exponent.lt(0) ? divisor(base) : base, whole(exponent));
}
