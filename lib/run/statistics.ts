/** Of no values it is NaN. */
export const mean = (values: number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Sample standard deviation, n − 1. */
export function sampleStd(values: number[]): number {
  const center = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - center) ** 2, 0) / (values.length - 1));
}
