/** Sizes of tensors, of which a kernel sees the shape only. */

export const sizeOf = (shape: number[]): number => shape.reduce((product, size) => product * size, 1);

/** Rows and columns of a matrix, or of each of a batch. */
export const lastTwo = (shape: number[], transposed: boolean): number[] =>
  transposed ? shape.slice(-2).reverse() : shape.slice(-2);
