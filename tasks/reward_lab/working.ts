/** What stands in the answer's tags, if anything does. */
export const answerIn = (text: string): string | undefined => /<answer>(.+?)<\/answer>/s.exec(text)?.[1].trim();

/** A line of working such as `47+38=85`. `isTrue`: its two sides are equal, whatever the question was. */
export type Line = { text: string; isTrue: boolean };

/** The lines between the tags of the working. */
export function linesOf(text: string): Line[] {
  const working = /<think>(.*?)<\/think>/s.exec(text)?.[1] ?? '';
  return [...working.matchAll(/(\d+)([+-])(\d+)=(\d+)/g)].map(([line, a, sign, b, result]) => ({
    text: line,
    isTrue: Number(a) + (sign === '+' ? 1 : -1) * Number(b) === Number(result),
  }));
}
