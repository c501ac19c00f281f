/** What notebooks and other people's code may import: the list is all there is. No line of an algorithm is in lib/. */
export { BACKENDS, initBackend } from './backend/index.ts';
export { loadPretrained, loadWithTokenizer } from './checkpoint/pretrained.ts';
export { loadTokenizer, type Tokenizer } from './checkpoint/tokenizer.ts';
export { createRunCommand, type OptionsOf, parseRunOptions } from './cli/command.ts';
export { runMain } from './cli/main.ts';
export { examples, integer, isTyped, number, rewardWeightsOption } from './cli/options.ts';
export { checkRanks } from './cli/rank_limits.ts';
export { runRanks } from './cli/ranks.ts';
export {
  amongAll,
  type Communicator,
  fromRankZero,
  reduceByName,
  shard,
  soloCommunicator,
} from './distributed/communicator.ts';
export { allReduceTensors, flatten, unflatten } from './distributed/flatten.ts';
export { isSampler } from './distributed/samplers.ts';
export { checkInSync } from './distributed/state.ts';
export { exactMatch, normalizeAnswer, sameAnswer, type Verdict } from './environments/answers.ts';
export { createCalculator } from './environments/calculator.ts';
export {
  answerOf,
  type Call,
  type Conversation,
  checkTools,
  converse,
  describeTools,
  type Stretch,
  transcribe,
} from './environments/conversation.ts';
export { checkCorpus, loadCorpus, loadQuestions, type Passage, type Question } from './environments/corpus.ts';
export { itemsOfStep, loadProblems, loadSplits, type Problem } from './environments/dataset.ts';
export { readJsonLines } from './environments/json_lines.ts';
export { finiteReward } from './environments/reward.ts';
export { createBm25, createEmbeddings, createRetriever, RETRIEVERS, searchTool } from './environments/search.ts';
export { loadData } from './environments/task.ts';
export { callTool, type Tool } from './environments/tool.ts';
export { UserError } from './errors.ts';
export { type Completion, generate } from './generation/generate.ts';
export { isObject } from './json.ts';
export { disposeModel, type Model, trainable, withTrainable } from './model/model.ts';
export { stopGradient } from './ops/stop_gradient.ts';
export { normals, permutation, uniform } from './random.ts';
export { curves, draw, STYLE } from './run/curves.ts';
export { type Asking, accuracies, type Evaluation, passAtK } from './run/evaluation.ts';
export { measureSpeed } from './run/speed.ts';
export { startRun } from './run/start.ts';
export { createTrainingState } from './run/training_state.ts';
export { inGroups, mean, sampleStd, sum } from './statistics.ts';
export { shown } from './text.ts';
export { accumulateGradients } from './training/gradients.ts';
export { completionLogProbs, logProbsOf, microBatches, padRows } from './training/log_probs.ts';
export { optimizerStep } from './training/optimizer_step.ts';
export { scheduleFactor } from './training/schedule.ts';
export { judgedSequence, scoresOf } from './training/scores.ts';
export type { TrainingState } from './training/state.ts';
