/** The bundled sums, as a task: with the rules that the experiments have anyway. */
import { loadProblems } from '../../lib/environments/dataset.ts';
import type { Task } from '../../lib/environments/task.ts';

const FILES = { train: 'tasks/sums/train.jsonl', test: 'tasks/sums/test.jsonl' };

export const task: Task = {
  load: ({ dataset }) => {
    if (dataset) return { train: loadProblems(dataset) };
    return { train: loadProblems(FILES.train), test: loadProblems(FILES.test) };
  },
};
