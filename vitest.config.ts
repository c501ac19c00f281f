import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['**/*.test.ts'],
    exclude: ['node_modules/**', 'lib/dist/**', 'runs/**'],
    // One TensorFlow.js engine a process, and native libraries cannot be loaded into worker threads twice.
    pool: 'forks',
    testTimeout: 60_000,
  },
});
