export const sum = (values: number[]): number => values.reduce((total, value) => total + value, 0);

/** Whether the parts of a statistic are put together by their maximum and not by their sum: its name says so. */
export const isMaximum = (name: string): boolean => name.endsWith('_max');

/** The mean; of no values, NaN. */
export const mean = (values: number[]): number => sum(values) / values.length;

/** Sample standard deviation, n − 1. */
export function sampleStd(values: number[]): number {
  const center = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - center) ** 2, 0) / (values.length - 1));
}

/** Values in groups of `size`, in their order. */
export const inGroups = <T>(values: T[], size: number): T[][] =>
  values.flatMap((_, i) => (i % size === 0 ? [values.slice(i, i + size)] : []));
