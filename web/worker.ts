/**
 * Trains models/tiny in a worker of a browser's tab, with the functions of experiment_base/train.ts and
 * experiment_drgrpo/train.ts as they are. What stands here is their `main()`, which waits for the page between two steps;
 * and rewards come from another worker, which has the user's own function.
 */
import { setWasmPaths } from '@tensorflow/tfjs-backend-wasm';
import * as base from '../experiment_base/train.ts';
import * as drgrpo from '../experiment_drgrpo/train.ts';
import { initBackend } from '../lib/backend/index.ts';
import { loadCheckpoint, saveCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { loadWithTokenizer } from '../lib/checkpoint/pretrained.ts';
import { itemsOfStep, loadProblems, loadSplits, type Problem } from '../lib/environments/dataset.ts';
import { finiteReward } from '../lib/environments/reward.ts';
import { mistakeIn, UserError } from '../lib/errors.ts';
import { disposeModel, trainable, withTrainable } from '../lib/model/model.ts';
import { uniform } from '../lib/random.ts';
import { piecesOf } from '../lib/run/pieces.ts';
import { measureSpeed } from '../lib/run/speed.ts';
import { createTrainingState, saveTrainingState } from '../lib/run/training_state.ts';
import { inGroups } from '../lib/statistics.ts';
import { createAdamW } from '../lib/training/adamw.ts';
import { tokenWeights } from '../watch/token_weights.ts';
import type { ToldRow } from '../watch/told.ts';
import type { Checkpoint, Graded, News, Order, Rewards, Settings, Start } from './messages.ts';
import { readdirSync, readFileSync, rm, writeFileSync } from './stand_ins/files.ts';

/** What `build.ts` puts in: the options of both experiments as they are by default, and the files to fetch. */
declare const DEFAULTS: { experiment_base: base.Options; experiment_drgrpo: drgrpo.Options };
declare const FILES: string[];

const MODEL = 'models/tiny';
const SUMS = { train: 'tasks/sums/train.jsonl', test: 'tasks/sums/test.jsonl' };
/** Steps from one asking of held-out questions to the next. */
const EVALUATION = 25;
/** Steps from one checkpoint to the next, while nobody pauses. */
const KEEPING = 10;

/** Browsers' own, which Node's types do not have. */
type Port = { postMessage(message: unknown): void; onmessage: (event: { data: Rewards }) => void };
type Scope = {
  postMessage(message: News): void;
  onmessage: (event: { data: Order; ports: Port[] }) => void;
  location: { href: string };
};
const page = globalThis as unknown as Scope;

const run = { isGoing: false, step: 0 };
let work: Awaited<ReturnType<typeof start>> | undefined;

/** Fetches what Node would read from the disk. */
async function fetchFiles(): Promise<void> {
  const fetched = FILES.map(async (name) => {
    const response = await fetch(new URL(`files/${name}`, page.location.href)).catch(() => {
      throw new UserError(`files/${name} cannot be reached: start again when there is a network`);
    });
    if (!response.ok) throw new UserError(`files/${name} is missing where this page comes from: build the page again`);
    writeFileSync(name, new Uint8Array(await response.arrayBuffer()));
  });
  await Promise.all(fetched);
}

/** What a checkpoint is of, and where it is written and read. */
const placeOf = (algorithm: Start['algorithm'], step: number) => ({
  ...{ experiment: algorithm, id: 'tab', folder: `kept/checkpoint-${step}`, step },
});

/** The folder of a checkpoint that the page has kept, as `--resume` finds one on a disk. */
function resumed(algorithm: Start['algorithm'], { step, files }: Checkpoint) {
  const { folder, ...place } = placeOf(algorithm, step);
  for (const [name, content] of files) writeFileSync(`${folder}/${name}`, content);
  return { ...place, folder: 'kept', checkpoint: folder, file: '', options: {} };
}

/** @param from - what to go on from, if not from the beginning */
async function start(given: Start & Settings, from: Checkpoint | undefined, rewards: Port) {
  const { algorithm, backend, threads, ...chosenOptions } = given;
  await fetchFiles();
  setWasmPaths(new URL('.', page.location.href).href);
  const chosen = await initBackend(backend, { blas: 'off', threads });
  const { rollout, toExperience, lossInputs, grpoLoss, update, evaluate, rolloutMetrics } = (
    algorithm === 'experiment_base' ? base : drgrpo
  ) as typeof base;
  const options: base.Options = { ...DEFAULTS[algorithm], ...chosenOptions };
  const { train, test } = loadSplits(loadProblems, options, SUMS);
  const { model: reference, tokenizer } = await loadWithTokenizer(MODEL, options);
  const resume = from && { resumed: resumed(algorithm, from) };
  const counters = { tokens: 0, skipped: 0 };
  const state = await createTrainingState(reference, counters, { ...options, ...resume }).catch((error) => {
    throw Object.assign(error, { isDamaged: from !== undefined });
  });
  await rm('kept');
  run.step = from?.step ?? 0;

  const toRow = ({ text, completion, oldLogProbs, reward, ...rest }: base.Rollout | base.Experience): ToldRow => ({
    ...{ completion: text, reward, rewards: [], tokens: completion.length, logProbs: oldLogProbs },
    pieces: piecesOf(completion, tokenizer),
    ...('advantage' in rest ? { advantage: rest.advantage } : {}),
  });

  /** The rollouts with the rewards that the user's function gives. */
  const graded = (rollouts: base.Rollout[]) =>
    new Promise<base.Rollout[]>((resolve, reject) => {
      rewards.onmessage = ({ data }) => {
        if ('mistake' in data) return reject(new UserError(data.mistake));
        resolve(rollouts.map((row, i) => ({ ...row, reward: finiteReward(data.rewards[i], row.problem) })));
      };
      const texts = rollouts.map(({ text, problem: { question, answer } }): Graded => ({ question, answer, text }));
      rewards.postMessage(texts);
    });

  /** One step, as in train.ts. Where it fails, nothing has changed. */
  async function makeStep(): Promise<void> {
    const began = performance.now();
    const number = run.step + 1;
    const now = { ...options };
    const problems = itemsOfStep(train, number, now);
    const draw: base.Draw = (...token) => uniform(now.seed, number, ...token);
    const rollouts = await graded(await rollout(state.model, tokenizer, problems, draw, now)); // sample, and reward
    const experience = await toExperience(rollouts, now.klCoef > 0 ? reference : undefined, now); // advantage
    const sampled = performance.now();
    const updated = await update(state, experience, number, now); // update
    const speeds = measureSpeed(state, rollouts, { began, sampled });
    run.step = number;
    // Of the groups, the first from which something is learnt.
    const groups = inGroups(experience, now.numGenerations);
    const group = groups.find((rows) => rows.some(({ advantage }) => advantage !== 0)) ?? groups[0];
    const [{ problem }] = group;
    const weights = await tokenWeights(
      group.map(({ oldLogProbs }) => oldLogProbs),
      (logProbs) => grpoLoss(lossInputs(logProbs, group), { ...now, completions: group.length }),
    );
    const rows = group.map((row, i) => ({ ...toRow(row), weights: weights[i] }));
    page.postMessage({
      ...{ news: 'step', step: number, metrics: { ...rolloutMetrics(rollouts, now), ...updated, ...speeds } },
      group: { question: problem.question, answer: problem.answer, rows },
    });
    if (number % EVALUATION === 0 || number === now.maxSteps) await askHeldOut();
    if (number % KEEPING === 0) await keep();
  }

  /** The accuracy on held-out questions. What is right there, the experiment says, whatever is rewarded. */
  async function askHeldOut(): Promise<void> {
    if (test.length === 0) return;
    const { metrics } = await evaluate(state.model, tokenizer, test, { samples: 0 }, options);
    page.postMessage({ news: 'evaluated', step: run.step, accuracy: metrics['eval/accuracy'] });
  }

  async function ask(question: string): Promise<void> {
    const problem: Problem = { question, answer: '', columns: {}, source: 'the question' };
    const greedy = { ...options, numGenerations: 1, temperature: 0 };
    const [row] = await rollout(state.model, tokenizer, [problem], () => 0, greedy);
    page.postMessage({ news: 'answer', question, row: { ...toRow(row), reward: null } });
  }

  /** Takes other settings from the next step on. */
  async function change(settings: Settings): Promise<void> {
    Object.assign(options, settings);
    Object.assign(given, settings);
    await keep();
  }

  /** Gives the page a checkpoint: policy, both moments, counters; all that steps depend on besides are the options. */
  async function keep(): Promise<void> {
    const place = placeOf(algorithm, run.step);
    await saveTrainingState(place, state, MODEL);
    const files = readdirSync(place.folder).map((name) => [name, readFileSync(`${place.folder}/${name}`)] as const);
    await rm('kept');
    page.postMessage({ news: 'kept', given, checkpoint: { step: run.step, files: new Map(files) } });
  }

  /** The weights alone, as the model had them. */
  async function save(): Promise<void> {
    await saveCheckpoint('final_model', { source: MODEL, params: state.model.params }, { dtype: reference.dtypes });
    page.postMessage({ news: 'saved', weights: readFileSync('final_model/model.safetensors') });
  }

  /** Goes on with other weights; what the optimizer remembers of the old ones is forgotten. */
  async function load(weights: Uint8Array): Promise<void> {
    for (const name of FILES.filter((name) => name.startsWith(MODEL))) {
      writeFileSync(name.replace(MODEL, 'yours'), readFileSync(name));
    }
    writeFileSync('yours/model.safetensors', weights);
    const { params } = await loadCheckpoint('yours');
    const before = { ...state.model };
    state.model = withTrainable(state.model, params);
    state.optimizer = createAdamW(trainable(state.model));
    disposeModel(before);
    await keep();
    page.postMessage({ news: 'loaded' });
  }

  page.postMessage({ news: 'ready', backend: chosen });
  return { options, makeStep, askHeldOut, ask, change, keep, save, load };
}

/** What to tell the user of an error. */
function sentenceFor(error: unknown): string {
  const mistake = mistakeIn(error);
  if (mistake === undefined) console.error(error);
  return mistake ?? `this is a mistake of the page: ${error}`;
}

/** Whatever needs the model has it for itself. */
let turn: Promise<void> = Promise.resolve();
function inTurn(act: () => Promise<void> | undefined): void {
  turn = turn.then(act).catch((error) => {
    run.isGoing = false;
    page.postMessage({ news: 'mistake', text: sentenceFor(error) });
  });
}

async function step(): Promise<void> {
  if (!work) return; // why it could not start was said
  const { options, makeStep, askHeldOut, keep } = work;
  const isLeft = () => run.step < options.maxSteps;
  try {
    if (run.step === 0) await askHeldOut();
    if (isLeft()) await makeStep();
  } catch (error) {
    if (run.isGoing) await keep(); // the steps up to here
    throw error;
  }
  if (!isLeft()) run.isGoing = false;
  if (run.isGoing) return inTurn(step);
  await keep();
  page.postMessage({ news: 'paused', finished: !isLeft() });
}

page.onmessage = ({ data, ports: [rewards] }) => {
  switch (data.order) {
    case 'start': {
      const { order, from, ...given } = data;
      return inTurn(async () => {
        work = await start(given, from, rewards).catch((error) => {
          page.postMessage({ news: 'failed', text: sentenceFor(error), isDamaged: error.isDamaged === true });
          return undefined;
        });
      });
    }
    case 'change': {
      const { order, ...settings } = data;
      return inTurn(() => work?.change(settings));
    }
    case 'go':
      if (run.isGoing) return;
      run.isGoing = true;
      return inTurn(step);
    case 'step':
      return inTurn(step);
    case 'pause':
      run.isGoing = false;
      return;
    case 'keep':
      return inTurn(() => work?.keep());
    case 'ask':
      return inTurn(() => work?.ask(data.question));
    case 'save':
      return inTurn(() => work?.save());
    case 'load':
      return inTurn(() => work?.load(data.weights));
  }
};
