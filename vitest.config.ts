import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['**/*.test.ts'],
    exclude: ['node_modules/**', 'lib/dist/**', 'runs/**'],
    // One TensorFlow.js engine a process, and native libraries cannot be loaded into worker threads twice.
    pool: 'forks',
    maxWorkers: '100%', // of the cores: left to itself, vitest keeps one of two for whoever edits meanwhile
    // Ends what hangs, nothing else: many tests wait for their turn to start processes. What must be quick measures itself.
    testTimeout: 1_200_000,
    hookTimeout: 1_200_000,
  },
});
