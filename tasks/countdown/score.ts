/**
 * The countdown task: make the target of the given numbers, each used exactly once, with + - * / and parentheses. The
 * rule is Search-R1's, and TinyZero's before it (verl/utils/reward_score/countdown.py), without their `eval`.
 */
import { betweenTags, type Verdict } from '../../lib/environments/answers.ts';
import { calculate } from '../../lib/environments/arithmetic.ts';

/** `numbers`: whole, not negative. */
export type Countdown = { numbers: number[]; target: number };

/** How far from a target that is not whole a value may be. Search-R1 has 1e-5, also around 5: 5 + 1/(98*99*100) is not. */
const TOLERANCE = 1e-9;

/**
 * What became of the equation of a completion: the last in `<answer>` tags, as `(3+5)*2` (× ÷ − will do as well), without
 * `= 16`. A whole target must be met exactly, 3*(1/3) being 1. Neither powers nor decimals are of the game: `1.5*2` does
 * not use up 1, 5 and 2.
 * @returns missing, if there are no such tags or nothing is between them
 */
export function equationVerdict(completion: string, { numbers, target }: Countdown): Verdict {
  const equation = betweenTags(completion, 'answer').at(-1);
  if (!equation) return 'missing';
  if (!/^[\d+\-*/()×÷−\s]+$/.test(equation)) return 'wrong';
  const used = equation.match(/\d+/g) ?? [];
  if (used.sort().join() !== numbers.map(String).sort().join()) return 'wrong';
  const result = calculate(equation);
  if (!result.ok) return 'wrong';
  const value = Number(result.text);
  const meets = Number.isInteger(target)
    ? value === target
    : Math.abs(value - target) <= TOLERANCE * Math.max(1, Math.abs(target));
  return meets ? 'right' : 'wrong';
}

/** Search-R1's reward: 1 for an equation that makes the target, `formatReward` for any other answer, 0 for none. */
export function equationReward(
  completion: string,
  countdown: Countdown,
  { formatReward = 0.1 }: { formatReward?: number } = {},
): number {
  return { right: 1, wrong: formatReward, missing: 0 }[equationVerdict(completion, countdown)];
}
