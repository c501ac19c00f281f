import type { Tool } from './tool.ts';

/** The tool `calc`: takes an expression and answers its value, as {@link calculate} of arithmetic.ts does. */
export async function createCalculator(): Promise<Tool> {
  // Imported when needed: mathjs takes longer to load than all else together.
  const { calculate } = await import('./arithmetic.ts');
  return {
    name: 'calc',
    description:
      'calculates: + - * / ^ ! ( ), pi, e, sqrt, abs, floor, ceil, round(x, places), min, max, mod, gcd, lcm',
    call: async (expression: string) => calculate(expression),
  };
}
