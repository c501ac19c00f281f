/** In place of `node:path` in a browser. */
export * from 'pathe';
