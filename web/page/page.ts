/** The page: what it says, its buttons, and what it shows of the training in its workers. */
import { button, element, fill, replaceCards, visible } from '../../watch/page/dom.ts';
import { cardOf, MEANINGS, mostOf, rewardsOf, SHADES, type Shade } from '../../watch/page/rows.ts';
import type { ToldGroup } from '../../watch/told.ts';
import {
  ALGORITHMS,
  type Algorithm,
  type Checkpoint,
  type News,
  type Order,
  type Settings,
  type Start,
} from '../messages.ts';
import { type Curve, chart } from './curves.ts';
import { EXAMPLE, REWARD } from './example.ts';
import { createGrader, type Grader } from './grader.ts';
import { DAMAGED, forget, keep, readKept, type Seen } from './keeping.ts';

/** What `build.ts` puts in: the defaults of experiment_base. */
declare const DEFAULTS: Settings & Pick<Start, 'seed' | 'maxSteps'>;

/** Questions that are never trained on, asked from time to time. */
const HELD_OUT = 50;

/** One algorithm in training, in a worker of its own; after a reload, not before it is to go on. */
type Training = Seen & {
  algorithm: Algorithm;
  worker?: Worker;
  /** what the worker goes on from */
  from?: Checkpoint | undefined;
  /** the groups of the newest steps, by step: of two algorithms, one may be some steps ahead */
  groups: Map<number, ToldGroup>;
  isGoing: boolean;
  isFinished: boolean;
  /** whether its weights are those of a file */
  isLoaded: boolean;
  /** what computes it, and how fast */
  backend: string;
  said: string;
};

const state = {
  trainings: [] as Training[],
  shade: 'advantage' as Shade,
  grader: undefined as Promise<Grader> | undefined,
};

const order = ({ worker }: Training, what: Order, ports: MessagePort[] = []) => worker?.postMessage(what, ports);
const orderAll = (what: Order) => {
  for (const training of state.trainings) order(training, what);
};

// ─── What the page says ──────────────────────────────────────────────────────────────────────────────────────────────

const paragraphs = (...texts: string[]) => texts.map((text) => element('p', {}, text));

const EXPLANATION = [
  'A small language model, of 0.8 million numbers, is in this page. It was shown sums, and makes mistakes when it has to carry. Here it learns to do better, from nothing but a number for each answer that says how good it was: reinforcement learning. All of it happens in this tab; nothing is sent anywhere.',
  'The method is GRPO, Group Relative Policy Optimization, by which the large models that reason are trained as well. A step of it: the model answers each of some questions several times, with chance in the choice of each token (a piece of text). The answers to one question are a group. A rule, the reward, gives each answer a number. The advantage of an answer says how much better it was than its own group: its reward, minus the mean of the group’s rewards, divided by their standard deviation. Then the model is changed a little, such that all tokens of answers with a positive advantage become more likely, and those of answers with a negative one less.',
  'An example is beside this: a group of four. The mean of the rewards is 0.3, the standard deviation (with n − 1 = 3) 0.47: the first answer, right and in its tags, is (1 − 0.3) ∕ 0.47 = 1.49 standard deviations above it. The last one is right, too, but has forgotten the tags in which it was to stand, and that counts for nothing. If all four were equally good, or equally bad, all advantages would be 0: from such a group nothing is learnt.',
];

const explained = element(
  'details',
  { class: 'explained', open: true },
  element('summary', {}, 'What happens here'),
  element(
    'div',
    { class: 'two' },
    element('div', {}, ...paragraphs(...EXPLANATION)),
    groupOf(EXAMPLE, 'an example', 'advantage'),
  ),
);

// ─── Settings ────────────────────────────────────────────────────────────────────────────────────────────────────────

type Field = { label: string; min: number; max: number; step: number | 'any' };

/** While it runs, too. */
const SETTINGS: Record<keyof Settings, Field> = {
  batchSize: { label: 'questions a step', min: 1, max: 64, step: 1 },
  numGenerations: { label: 'G, answers to each', min: 2, max: 32, step: 1 },
  learningRate: { label: 'learning rate', min: 0, max: 0.1, step: 'any' },
  numIterations: { label: 'μ, updates from the same answers', min: 1, max: 8, step: 1 },
  clipRange: { label: 'ε, limit of a token’s change (if μ > 1)', min: 0, max: 1, step: 'any' },
  klCoef: { label: 'β, pull back to the model of the start', min: 0, max: 10, step: 'any' },
};
const AT_START: Record<'seed' | 'maxSteps', Field> = {
  seed: { label: 'seed of chance', min: 0, max: 2 ** 31, step: 1 },
  maxSteps: { label: 'steps', min: 1, max: 10_000, step: 1 },
};

const inputs = new Map<string, HTMLInputElement>();

const fieldsOf = (fields: Record<string, Field>) =>
  Object.entries(fields).map(([name, { label, ...limits }]) => {
    const value = DEFAULTS[name as keyof typeof DEFAULTS];
    const input = element('input', { type: 'number', name, value, required: true, ...limits });
    input.addEventListener('change', () => {
      if (!isGood(input) || !(name in SETTINGS)) return;
      orderAll({ order: 'change', ...settings() });
      mark();
    });
    inputs.set(name, input);
    return element('label', {}, label, input);
  });

/** Remembers that something is different from the next step on. */
function mark(): void {
  for (const { step, marks } of state.trainings) if (step > 0 && marks.at(-1) !== step) marks.push(step);
}

/** Whether a number can be used; if not, says so. */
function isGood(input: HTMLInputElement): boolean {
  const { label, min, max, step } = { ...SETTINGS, ...AT_START }[input.name as keyof typeof SETTINGS];
  const kind = step === 1 ? 'an integer' : 'a number';
  const isValid = input.checkValidity();
  complain(
    isValid ? '' : `${label}: expected ${kind} from ${min} to ${max}, found ${input.value || 'nothing that is one'}`,
  );
  return isValid;
}

const numbersIn = <Name extends string>(fields: Record<Name, Field>) =>
  Object.fromEntries(Object.keys(fields).map((name) => [name, inputs.get(name)!.valueAsNumber])) as Record<
    Name,
    number
  >;
const settings = (): Settings => numbersIn(SETTINGS);

const backend = element(
  'select',
  { 'aria-label': 'computed by' },
  element('option', { value: 'wasm' }, 'the processor (wasm)'),
  'gpu' in navigator && element('option', { value: 'webgpu' }, 'the graphics card (WebGPU)'),
);
const isBeside = element('input', { type: 'checkbox' });
const atStart = element(
  'fieldset',
  { class: 'fields' },
  element('legend', {}, 'From the start'),
  ...fieldsOf(AT_START),
  element('label', {}, 'computed by', backend),
  element('label', { class: 'check' }, isBeside, 'beside it Dr. GRPO, from the same start'),
  element(
    'small',
    { class: 'about' },
    'Dr. GRPO divides neither by the standard deviation nor by the length of an answer. In GRPO each token of a short answer weighs more than one of a long answer, here they weigh the same. Questions below, and the download, are for GRPO’s model.',
  ),
);
// What is trained nowhere yet can still begin otherwise.
atStart.addEventListener('change', () => {
  if (!isLocked()) end();
  show();
});
const whileItRuns = element(
  'fieldset',
  { class: 'fields' },
  element('legend', {}, 'Also while it runs'),
  ...fieldsOf(SETTINGS),
  element(
    'small',
    { class: 'about' },
    'More answers see finer differences, and cost more. Where the same answers are used for several updates, ε ends the push of a token whose probability has changed by that share: 0.2 is usual. β keeps the model near that of the start, which helps where a reward has a hole: from 0 to 0.1, mostly.',
  ),
);

// ─── Reward ──────────────────────────────────────────────────────────────────────────────────────────────────────────

const code = element('textarea', {
  ...{
    rows: 10,
    spellcheck: 'false',
    autocapitalize: 'off',
    autocomplete: 'off',
    'aria-label': 'the reward, in JavaScript',
  },
});
code.value = REWARD;
const used = element('small', { role: 'status' }, 'in use');
code.addEventListener('input', () => {
  used.textContent = 'changed, not yet in use';
});
let inUse = REWARD;
function useReward(): void {
  if (code.value !== inUse) mark();
  inUse = code.value;
  void state.grader?.then(({ use }) => use(inUse));
  orderAll({ order: 'keep' });
  used.textContent = 'in use';
  complain('');
}
const rewardPart = element(
  'section',
  { class: 'reward-part' },
  element('h2', {}, 'The reward'),
  element(
    'p',
    { class: 'about' },
    'A function of the answer’s text. It runs apart from everything, without network, two seconds at most for a step.',
  ),
  code,
  element(
    'div',
    { class: 'row' },
    button('Use this reward', useReward),
    button('The first one again', () => {
      code.value = REWARD;
      useReward();
    }),
    used,
  ),
);

// ─── Training ────────────────────────────────────────────────────────────────────────────────────────────────────────

const status = element('output', { class: 'status', role: 'status' }, 'not started');
const note = element('small', { class: 'about' });
const mistake = element('p', { class: 'mistake', role: 'alert' });
const complain = (text: string) => {
  mistake.textContent = visible(text);
  mistake.hidden = text === '';
};
complain('');

const goes = button('Start', () => void go(), { class: 'first' });
const steps = button('One step', () => void makeStep());
const [ANEW, REALLY] = ['From the beginning', 'Press again: what is learnt will be lost'];
const anew = button(ANEW, restart, { disabled: true });

/** Of what the tab may use. Threads share memory, which a page may do only where its host allows that. */
const threadsFor = (trainings: number) =>
  Math.max(1, Math.floor(Math.min(8, navigator.hardwareConcurrency) / trainings));

/** A training that has no worker yet. */
const asleep = (algorithm: Algorithm): Training => ({
  ...{
    algorithm,
    isGoing: false,
    isFinished: false,
    isLoaded: false,
    step: 0,
    backend: '',
    said: '',
    groups: new Map(),
  },
  ...{ curves: { reward: [], accuracy: [], 'held out': [] }, marks: [] },
});

/** Puts what the browser has kept on the page: it is as it was, paused. */
async function restore(): Promise<void> {
  const kept = await readKept();
  if (typeof kept === 'string') return complain(kept);
  if (kept.length === 0) return;
  const [{ given, reward }] = kept;
  for (const [name, input] of inputs) input.value = String(given[name as keyof typeof given]);
  backend.value = given.backend;
  isBeside.checked = kept.some(({ given }) => given.algorithm === 'experiment_drgrpo');
  code.value = reward;
  useReward();
  state.trainings = kept.map(({ given, seen, checkpoint }) => ({
    ...{ ...asleep(given.algorithm), ...seen, from: checkpoint },
    ...{ isFinished: checkpoint.step >= given.maxSteps, said: 'kept in this browser' },
  }));
  show();
}

async function start(): Promise<void> {
  await restored;
  state.grader ??= createGrader(code.value);
  const grader = await state.grader;
  if (state.trainings.length === 0) {
    void forget();
    state.trainings = [asleep('experiment_base'), ...(isBeside.checked ? [asleep('experiment_drgrpo')] : [])];
  }
  if (code.value !== inUse) useReward();
  const sleeping = state.trainings.filter(({ worker }) => !worker);
  for (const training of sleeping) begin(training, grader.connect());
}

/** Gives a training its worker. */
function begin(training: Training, rewards: MessagePort): void {
  const worker = new Worker('worker.js', { type: 'module' });
  worker.addEventListener('message', ({ data }) => hear(training, data));
  worker.addEventListener('error', ({ message }) => {
    const text = message
      ? `the worker has ended: ${message}`
      : 'worker.js cannot be reached: start again when it can be';
    hear(training, { news: 'failed', text, isDamaged: false });
  });
  const { algorithm, from } = training;
  const given = {
    algorithm,
    backend: backend.value as Start['backend'],
    threads: threadsFor(state.trainings.length),
    evalSize: HELD_OUT,
  };
  Object.assign(training, { worker, from: undefined, said: 'loading' });
  order(training, { order: 'start', from, ...given, ...numbersIn(AT_START), ...settings() }, [rewards]);
}

/** Whether something would be lost if one began otherwise. */
const isLocked = () => state.trainings.some(({ step, isGoing, isLoaded }) => step > 0 || isGoing || isLoaded);

const areGood = () => [...inputs.values()].every(isGood);

async function go(): Promise<void> {
  if (state.trainings.some(({ isGoing }) => isGoing)) {
    orderAll({ order: 'pause' });
    status.value = 'pausing after this step';
    return;
  }
  if (!areGood()) return;
  await start();
  for (const training of state.trainings) {
    training.isGoing = !training.isFinished;
    if (training.isGoing) order(training, { order: 'go' });
  }
  show();
}

async function makeStep(): Promise<void> {
  if (!areGood()) return;
  await start();
  orderAll({ order: 'step' });
  show();
}

function end(): void {
  for (const { worker } of state.trainings) worker?.terminate();
  state.trainings = [];
  note.textContent = '';
  fill(said);
}

/** Milliseconds that a question waits for its answer. */
const PATIENCE = 4000;

function restart(): void {
  if (isLocked() && anew.textContent === ANEW) {
    anew.textContent = REALLY;
    setTimeout(() => {
      anew.textContent = ANEW;
    }, PATIENCE);
    return;
  }
  anew.textContent = ANEW;
  end();
  void forget();
  complain('');
  show();
}

/** Goes back to what the browser has kept, or to before the start, so that one can start again. */
async function goBack(text: string, isDamaged: boolean): Promise<void> {
  end();
  if (isDamaged) await forget();
  restored = restore();
  await restored;
  show();
  complain(isDamaged ? `${DAMAGED} (${text})` : text);
}

function hear(training: Training, news: News): void {
  if (!state.trainings.includes(training)) return;
  switch (news.news) {
    case 'ready':
      training.backend = news.backend.replace(/ \(.*/, '');
      training.said = training.backend;
      break;
    case 'evaluated':
      training.curves['held out'] = training.curves['held out'].filter(([step]) => step < news.step);
      training.curves['held out'].push([news.step, news.accuracy]);
      break;
    case 'step': {
      const { step, metrics, group } = news;
      for (const earlier of training.groups.keys()) if (earlier < newestOfAll()) training.groups.delete(earlier);
      training.groups.set(step, group);
      Object.assign(training, { step, group, said: `${metrics.step_time.toFixed(1)} s a step, ${training.backend}` });
      training.curves.reward.push([step, metrics.reward]);
      training.curves.accuracy.push([step, metrics['rewards/accuracy/mean']]);
      break;
    }
    case 'paused':
      Object.assign(training, { isGoing: false, isFinished: news.finished });
      break;
    case 'kept': {
      const { given, checkpoint } = news;
      const { step, curves, group, marks } = training;
      void keep({ given, reward: inUse, seen: { step, curves, group, marks }, checkpoint }).then((text) => {
        if (state.trainings.includes(training)) note.textContent = text;
      });
      return;
    }
    case 'answer': {
      const when = training.step > 0 ? `after step ${training.step}` : 'before';
      const answer = element('p', { class: 'text' }, visible(news.row.completion));
      said.prepend(element('div', {}, element('small', {}, `${when}: ${visible(news.question)}`), answer));
      while (said.children.length > ANSWERS) said.lastElementChild!.remove();
      break;
    }
    case 'saved':
      download(news.weights);
      break;
    case 'loaded':
      training.isLoaded = true;
      status.value = 'the model of the file is in its place';
      break;
    case 'mistake':
      training.isGoing = false;
      orderAll({ order: 'pause' });
      complain(news.text);
      if (news.text.startsWith('the reward')) used.textContent = 'at fault: see the message at the buttons';
      break;
    case 'failed':
      void goBack(news.text, news.isDamaged);
      return;
  }
  if (news.news !== 'loaded' && news.news !== 'answer') show();
}

// ─── Ask, and take away ──────────────────────────────────────────────────────────────────────────────────────────────

const question = element('input', { type: 'text', value: '36+47', maxlength: 40, 'aria-label': 'a question' });
/** Answers that stay. */
const ANSWERS = 4;
const said = element('div', { class: 'said', role: 'status' });
async function ask(): Promise<void> {
  if (!areGood()) return;
  await start();
  order(state.trainings[0], { order: 'ask', question: question.value });
}
question.addEventListener('keydown', ({ key }) => {
  if (key === 'Enter') void ask();
});

const file = element('input', { type: 'file', accept: '.safetensors', 'aria-label': 'weights to go on with' });
file.addEventListener('change', async () => {
  const [chosen] = file.files ?? [];
  if (!chosen || !areGood()) return;
  await start();
  const weights = new Uint8Array(await chosen.arrayBuffer());
  orderAll({ order: 'load', weights });
  file.value = '';
});

function download(weights: Uint8Array): void {
  const url = URL.createObjectURL(new Blob([weights as Uint8Array<ArrayBuffer>]));
  element('a', { href: url, download: 'model.safetensors' }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const talk = element(
  'section',
  {},
  element('h2', {}, 'Ask the model'),
  element(
    'div',
    { class: 'row' },
    question,
    button('Ask', () => void ask()),
  ),
  said,
  element('h2', {}, 'Take it with you'),
  element(
    'p',
    { class: 'about' },
    'The weights are a safetensors file: in the place of models/tiny/model.safetensors it is a checkpoint, for this repository and for Python’s transformers. The browser keeps them as well, with all that training needs, at each pause and every ten steps: when this page is loaded again, it goes on from there.',
  ),
  element(
    'div',
    { class: 'row' },
    button('Download the weights', async () => {
      if (!areGood()) return;
      await start();
      order(state.trainings[0], { order: 'save' });
    }),
    element('label', { class: 'file' }, 'go on with others: ', file),
  ),
);

// ─── What is shown ───────────────────────────────────────────────────────────────────────────────────────────────────

/** `advantage`: the largest on the page, so that what stands side by side has one scale. */
function groupOf(
  { question, answer, rows }: ToldGroup,
  when: string,
  shade: Shade,
  { advantage } = mostOf(rows),
): HTMLElement {
  const most = { advantage, weight: mostOf(rows).weight }; // each loss has a scale of its own
  return element(
    'section',
    { class: 'group' },
    element(
      'div',
      { class: 'prompt' },
      element('small', {}, `${when}, question`),
      element('p', {}, visible(question)),
      element('small', {}, `right answer: ${visible(answer ?? '')}`),
      element('small', {}, rewardsOf(rows)),
    ),
    ...rows.map((row, i) => cardOf(row, i, rows, shade, most)),
  );
}

const shades = element('fieldset', { class: 'shades' }, element('legend', {}, 'tokens shaded by'));
const meaning = element('small', { class: 'meaning' });
for (const shade of SHADES) {
  const radio = element('input', { type: 'radio', name: 'shade', value: shade, checked: shade === state.shade });
  radio.addEventListener('change', () => {
    state.shade = shade;
    show();
  });
  shades.append(element('label', {}, radio, shade));
}
const columns = element('div', { class: 'columns' });
const groups = element(
  'section',
  { class: 'groups' },
  element('h2', {}, 'A group of the newest step'),
  element('p', { class: 'about' }, 'The first whose answers are not all worth the same, if there is one.'),
  element('div', { class: 'choices' }, shades, meaning),
  columns,
);
const curves = element('section', { class: 'curves', 'aria-label': 'curves' });
const aboutCurves = element(
  'p',
  { class: 'about' },
  `Right answers are counted whatever is rewarded. In training they come with chance; the ${HELD_OUT} held-out questions, never trained on, are asked for the most likely answer, before the first step and every 25 steps.`,
);

/** The newest step that all trainings have made. */
const newestOfAll = () => Math.min(...state.trainings.map(({ step }) => step));

function show(): void {
  const { trainings } = state;
  const isGoing = trainings.some((training) => training.isGoing);
  const [first] = trainings;
  goes.textContent = isGoing ? 'Pause' : first?.step ? 'Go on' : 'Start';
  const isFinished = trainings.length > 0 && trainings.every((training) => training.isFinished);
  goes.disabled = isFinished && !isGoing;
  steps.disabled = isGoing || isFinished;
  anew.disabled = trainings.length === 0;
  for (const input of [...Object.keys(AT_START).map((name) => inputs.get(name)!), isBeside])
    input.disabled = isLocked();
  backend.disabled = isLocked() && trainings.some(({ worker }) => worker);
  const places = trainings.map(({ algorithm, step, said }) => {
    const name = trainings.length > 1 ? `${ALGORITHMS[algorithm]}: ` : '';
    return `${name}step ${step} of ${inputs.get('maxSteps')!.value}, ${said}`;
  });
  status.value = first ? `${isFinished ? 'finished: ' : ''}${places.join(' · ')}` : 'not started';
  const curvesOf = (name: keyof Training['curves'], words: string, dots = false): Curve[] =>
    (trainings.length > 0 ? trainings : [undefined]).map((training, i) => ({
      name: `${words}${trainings.length > 1 ? `, ${ALGORITHMS[training!.algorithm]}` : ''}`,
      ...{ kind: `kind${i}${dots ? ' asked' : ''}`, dots, points: training?.curves[name] ?? [] },
    }));
  const marks = [...new Set(trainings.flatMap((training) => training.marks))];
  const right = [
    ...curvesOf('accuracy', 'in training'),
    ...curvesOf('held out', `of ${HELD_OUT} held-out questions`, true),
  ];
  fill(
    curves,
    chart('Reward, mean of a step', curvesOf('reward', 'reward'), marks),
    chart('Right answers, share', right, marks),
  );
  meaning.textContent = MEANINGS[state.shade];
  const newest = trainings.map(({ groups, group, step }) => {
    const found = groups.get(newestOfAll());
    return found ? { group: found, step: newestOfAll() } : { group, step };
  });
  const most = mostOf(newest.flatMap(({ group }) => group?.rows ?? []));
  const shown = newest.map(({ group, step }, i) =>
    element(
      'div',
      { class: 'column' },
      element('h3', {}, ALGORITHMS[trainings[i].algorithm]),
      group
        ? groupOf(group, `step ${step}`, state.shade, most)
        : element('p', { class: 'about' }, 'comes with the first step'),
    ),
  );
  replaceCards(columns, ...(shown.length > 0 ? shown : [element('p', { class: 'about' }, 'None yet: press Start.')]));
}

const page = document.querySelector<HTMLElement>('main')!;
fill(
  page,
  element('header', {}, element('h1', {}, 'A model learns in this tab'), explained),
  element('div', { class: 'bar-of-buttons' }, goes, steps, anew, status, note, mistake),
  element(
    'div',
    { class: 'parts' },
    element('div', { class: 'left' }, curves, aboutCurves, groups),
    element(
      'div',
      { class: 'right' },
      element('section', {}, element('h2', {}, 'Settings'), whileItRuns, atStart),
      rewardPart,
      talk,
    ),
  ),
);
show();
let restored = restore();

// Where a browser keeps nothing (a private window, say), the page is as good as before, as long as there is a network.
void navigator.serviceWorker?.register('offline.js').catch(() => {});
