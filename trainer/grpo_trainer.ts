/**
 * `GRPOTrainer`: the algorithms of the experiments, with prompts and rewards of one's own, under TRL's names. What an
 * algorithm computes stands in its experiment; here is only what lies between your data and that.
 */

import type { Draw, Options, Rollout } from '../experiment_base/train.ts';
import * as dapo from '../experiment_dapo/train.ts';
import type * as tool from '../experiment_multiturn_tool/train.ts';
import type { ChatMessage } from '../lib/checkpoint/chat_template.ts';
import { saveCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { writeLora } from '../lib/checkpoint/lora_files.ts';
import { loadPretrained, type Pretrained } from '../lib/checkpoint/pretrained.ts';
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import { loadEnvFile } from '../lib/env_file.ts';
import { type Call, checkTools, converse, describeTools } from '../lib/environments/conversation.ts';
import { itemsOfStep } from '../lib/environments/dataset.ts';
import type { Tool } from '../lib/environments/tool.ts';
import { UserError } from '../lib/errors.ts';
import { generate } from '../lib/generation/generate.ts';
import { mergeLora } from '../lib/model/lora.ts';
import type { Model } from '../lib/model/model.ts';
import { uniform } from '../lib/random.ts';
import type { Asking, Evaluation } from '../lib/run/evaluation.ts';
import { findRun } from '../lib/run/find_run.ts';
import type { RunHooks } from '../lib/run/run.ts';
import { measureSpeed } from '../lib/run/speed.ts';
import { type Started, startRun } from '../lib/run/start.ts';
import { mean, sampleStd } from '../lib/statistics.ts';
import { shown } from '../lib/text.ts';
import { ALGORITHMS, algorithmOf, type GRPOConfig, type LossType, optionsOf, REWARD_TIMEOUT } from './config.ts';
import { type Dataset, type Example, type Row, readDataset } from './dataset.ts';
import { callRewards, namesOf, type RewardFunction, type RewardModel, rewardModel } from './rewards.ts';

/** What is trained, on what, and how. */
export type GRPOTrainerOptions = {
  /** a folder in the Hugging Face layout, or `owner/name[@revision]` on the hub; or what `loadPretrained` gave, as it is now */
  model: string | Pretrained;
  /** functions, or names of reward models; of several, the weighted sum is the reward */
  rewardFuncs: RewardFunction | string | (RewardFunction | string)[];
  args?: GRPOConfig;
  trainDataset: Dataset;
  /** held out; without it nothing is evaluated */
  evalDataset?: Dataset;
  /** another tokenizer than the model's own: with another chat template, say. What is saved has the model's own */
  processingClass?: Tokenizer;
  /** what `beta` keeps the policy close to, if not the initial policy: a model of the same vocabulary */
  refModel?: string;
  /** trains an adapter, in place of all weights */
  peftConfig?: PeftConfig;
  /** what the policy may call in the middle of a completion; what a tool answers is not trained on */
  tools?: Tool[];
  /** makes what a completion acts in: one for each, whose tools share its state */
  environment?: () => Environment;
  callbacks?: Callbacks;
};

/** What one completion acts in. Rewards find it in `environments`, as it is at the end. */
export type Environment = {
  /** puts it into its first state, for a line of the data set */
  reset?: (row: Row) => void | Promise<void>;
  /** what can be done in it; all environments have tools of the same names */
  tools: Tool[];
};

/** As PEFT's LoraConfig: rank, scale (default: twice the rank), projections (default: all). */
export type PeftConfig = { r: number; loraAlpha?: number; targetModules?: string[] | 'all-linear' };

/** Each is waited for. What it throws ends the run; the steps made are saved. */
export type Callbacks = {
  /** after each step: its metrics, and the first group of completions */
  onStep?: RunHooks['onStep'];
  /** after each evaluation */
  onEvaluate?: (found: { metrics: Record<string, number> }) => void | Promise<void>;
  /** after each checkpoint */
  onSave?: RunHooks['onSave'];
};

const EXPERIMENT = 'trainer';
const SHOWN = { reward: 'reward', 'held-out reward': 'eval/reward', 'tokens/s': 'tokens_per_second' };

/** A completion with its rewards, of which an algorithm sees the sum. */
type Graded = Rollout & { example: Example; rewards: (number | null)[]; mask: number[]; calls: Call[] };

export class GRPOTrainer {
  readonly #options: GRPOTrainerOptions;
  readonly #functions: (RewardFunction | RewardModel)[];
  readonly #names: string[];
  readonly #weights: number[];
  readonly #lossType: LossType;
  readonly #tools: Tool[];
  #started: Started | undefined;
  #examples: Promise<{ train: Example[]; test: Example[] }> | undefined;

  /** @throws {UserError} if there is no reward function, or not a weight for each */
  constructor(options: GRPOTrainerOptions) {
    this.#options = options;
    this.#functions = [options.rewardFuncs].flat().map((reward) => {
      return typeof reward === 'string' ? rewardModel(reward, options.args ?? {}) : reward;
    });
    this.#names = namesOf(this.#functions);
    if (options.tools && options.environment)
      throw new UserError('give either tools or an environment, which has its own');
    this.#tools = options.environment ? toolsIn(options.environment()) : checkedTools(options.tools ?? []);
    this.#lossType = options.args?.lossType ?? 'grpo';
    this.#weights = options.args?.rewardWeights ?? this.#functions.map(() => 1);
    if (this.#weights.length !== this.#functions.length || !this.#weights.every(Number.isFinite)) {
      throw new UserError(
        `args.rewardWeights must be ${this.#functions.length} numbers, one a reward function, found ${JSON.stringify(this.#weights)}`,
      );
    }
  }

  /**
   * Trains, or goes on: to the last step, or until Ctrl-C or `signal`, which save.
   * @param options.resumeFromCheckpoint - the folder of a run or of one of its checkpoints; true: the run in `outputDir`
   * @param options.signal - ends training after the step under way
   * @returns the run's folder, and the metrics of its last step
   * @throws {UserError} for any mistake in options, data sets and reward functions; what was saved until then is kept
   */
  async train({
    resumeFromCheckpoint,
    signal,
  }: {
    resumeFromCheckpoint?: string | boolean;
    signal?: AbortSignal;
  } = {}): Promise<{ folder: string; metrics: Record<string, number> }> {
    const { model, refModel, peftConfig, callbacks } = this.#options;
    const modelName = nameOf(model);
    const args = { ...this.#options.args, ...(peftConfig && loraOptions(peftConfig)) };
    loadEnvFile(); // a script of one's own has not done so
    const { train, test } = await this.#read();
    const resume = resumeFromCheckpoint === true ? args.outputDir : resumeFromCheckpoint || undefined;
    if (resumeFromCheckpoint === true && resume === undefined) {
      throw new UserError('resumeFromCheckpoint: true continues the run in args.outputDir: name that folder');
    }
    // A template that tells the date tells the same one, whenever the run goes on.
    const before = resume === undefined ? undefined : findRun(resume, { experiment: EXPERIMENT }).options.templateDate;
    const templateDate = args.templateDate ?? (before as string | undefined);
    const hasTools = this.#tools.length > 0;
    const options = optionsOf({ ...args, templateDate }, { modelName, prompts: train.length, resume, hasTools });
    if (refModel !== undefined && options.klCoef === 0) {
      throw new UserError('refModel counts for nothing where args.beta is 0: set it, or leave out refModel');
    }
    const lossType = this.#lossType;
    const algorithm = algorithmOf(lossType, { hasTools });
    // What the folder keeps: not the experiment's task, but what is the trainer's.
    const { dataset, evalDataset, questionColumn, answerColumn, evalSize, systemPrompt, formatReward, ...kept } =
      options;
    const tools = this.#tools.map(({ name }) => name);
    const own = { lossType, rewardFuncs: this.#names, rewardWeights: this.#weights, refModel, tools };
    let otherReference: Model | undefined;
    this.#started = await startRun(
      { ...kept, ...own },
      {
        ...{ experiment: EXPERIMENT, shown: SHOWN, train, test, buildPrompt: this.#buildPrompt },
        // One by one: those of a class are not its own properties.
        onStep: (made) => callbacks?.onStep?.(made),
        onSave: (saved) => callbacks?.onSave?.(saved),
        ...(signal && { signal }),
        others: [
          ...this.#functions.flatMap((reward) => ('model' in reward ? reward.model : [])),
          ...(refModel ? [refModel] : []),
        ],
        ...(typeof model !== 'string' && { initial: model }),
        tokenizer: this.#options.processingClass,
        reference: options.klCoef > 0 && refModel === undefined,
        prepare: async (tokenizer) => {
          if (hasTools) checkTools(tokenizer, this.#tools);
          const { vocabSize } = tokenizer;
          for (const reward of this.#functions) if ('load' in reward) await reward.load();
          if (refModel === undefined) return;
          otherReference = await loadPretrained(refModel);
          if (otherReference.config.vocabSize >= vocabSize) return;
          const found = `${otherReference.config.vocabSize} tokens, and not the ${vocabSize}`;
          throw new UserError(`refModel ${refModel} knows ${found} of the policy's tokenizer: name one of its family`);
        },
      },
    );
    const { run, state, tokenizer } = this.#started;
    const reference = otherReference ?? this.#started.reference;
    const ask = async (how: Asking) => {
      const evaluation = await this.#evaluate(state.model, tokenizer, test, how, options);
      await callbacks?.onEvaluate?.({ metrics: evaluation.metrics });
      return evaluation;
    };

    let last: Record<string, number> | undefined;
    await run.evaluateFirst(ask);
    for await (const step of run.steps()) {
      const sample = (round: number, count: number) => {
        const place = step.number + round * options.maxSteps; // what is beyond the last step, no step samples
        const draw: Draw = (...token) => uniform(options.seed, place, ...token);
        const examples = itemsOfStep(train, place, options).slice(0, count);
        return this.#rollout(state.model, tokenizer, examples, draw, options);
      };
      const { rollouts, resampled } = await this.#sampleStep(sample, options);
      const experience = await algorithm.toExperience(rollouts, reference, options);
      const sampled = performance.now();
      const updated = await algorithm.update(state, experience, step.number, options);
      const speeds = measureSpeed(state, rollouts, { began: step.began, sampled, inVain: resampled });
      const samples = rollouts
        .slice(0, options.numGenerations)
        .map((row, i) => this.#toSample({ ...row, advantage: experience[i].advantage }));
      const again = { 'sampling/resampled_groups': resampled.length / options.numGenerations };
      last = { ...this.#metrics(rollouts, options), ...updated, ...speeds, ...(lossType === 'dapo' ? again : {}) };
      step.log(last, samples);
      await step.evaluate(ask);
    }
    return {
      folder: run.folder.folder,
      metrics: last ?? (run.folder.history().at(-1) as Record<string, number>),
    };
  }

  /**
   * Asks the held-out prompts once more, greedily and `evalSamples` times.
   * @throws {UserError} before `train`, or without an `evalDataset`
   */
  async evaluate(): Promise<Record<string, number>> {
    const { evalDataset, args = {}, model } = this.#options;
    if (!evalDataset) throw new UserError('evaluate() asks the prompts of evalDataset: give the trainer one');
    const { state, tokenizer } = this.#afterTraining('evaluate()');
    const { test } = await this.#read();
    const options = optionsOf(args, { modelName: nameOf(model), prompts: 1, hasTools: this.#tools.length > 0 });
    const how = { samples: options.evalSamples };
    return (await this.#evaluate(state.model, tokenizer, test, how, options)).metrics;
  }

  /** Writes the model (of an adapter, that) in the Hugging Face layout. */
  async saveModel(folder: string): Promise<void> {
    const { state, source } = this.#afterTraining('saveModel()');
    if (state.model.lora) return writeLora(folder, state.model.lora);
    await saveCheckpoint(folder, { source: source.folder, params: mergeLora(state.model) }, { dtype: source.dtypes });
  }

  /** The data sets, each read once: an iterable may be at its end then. */
  #read(): Promise<{ train: Example[]; test: Example[] }> {
    const { trainDataset, evalDataset } = this.#options;
    const read = async () => ({
      train: await readDataset(trainDataset, 'trainDataset'),
      test: evalDataset ? await readDataset(evalDataset, 'evalDataset') : [],
    });
    this.#examples ??= read();
    return this.#examples;
  }

  #afterTraining(what: string): Started {
    if (this.#started) return this.#started;
    throw new UserError(`${what} is about the model that train() has trained: call that first`);
  }

  /** The prompt's token ids: a text as it is, a conversation through the chat template; a system prompt tells of tools. */
  readonly #buildPrompt = (tokenizer: Tokenizer, { prompt }: Example): number[] => {
    if (typeof prompt === 'string') return tokenizer.encode(prompt);
    return tokenizer.chat(this.#tools.length > 0 ? withTools(prompt, this.#tools) : prompt);
  };

  /** Samples completions of prompts and has them rewarded: those of prompt 0 first. */
  async #rollout(
    model: Model,
    tokenizer: Tokenizer,
    examples: Example[],
    draw: Draw,
    options: Options & { onProgress?: Asking['onProgress'] },
  ): Promise<Graded[]> {
    const G = options.numGenerations;
    const prompts = examples.map((example) => this.#buildPrompt(tokenizer, example));
    const environments = await this.#environments(examples, G);
    const toolsOf = (row: number) => environments[row]?.tools ?? this.#tools;
    const limits = { ...(options as unknown as tool.Options), rows: prompts.length * G };
    const conversation = this.#tools.length > 0 ? converse(tokenizer, toolsOf, limits) : undefined;
    const completions = await generate(model, prompts, G, {
      ...options,
      ...(conversation && { react: conversation.react }),
      eosTokenIds: model.config.eosTokenIds,
      random: (row, position) => draw(Math.floor(row / G), row % G, position),
    });
    const texts = completions.map(({ tokens }) => tokenizer.decode(tokens, { skipSpecialTokens: true }));
    const of = (row: number) => examples[Math.floor(row / G)];
    const columns = [...new Set(examples.flatMap((example) => Object.keys(example.columns)))];
    const inputs = {
      ...Object.fromEntries(columns.map((name) => [name, completions.map((_, row) => of(row).columns[name])])),
      prompts: completions.map((_, row) => of(row).prompt),
      completions: texts.map((text, row) =>
        typeof of(row).prompt === 'string' ? text : [{ role: 'assistant', content: text }],
      ),
      completionIds: completions.map(({ tokens }) => tokens),
      calls: conversation?.calls ?? completions.map(() => []),
      ...(environments.length > 0 && { environments }),
    };
    const { rewardTimeout: timeout = REWARD_TIMEOUT } = this.#options.args ?? {};
    const graded = await callRewards(this.#functions, inputs, { weights: this.#weights, timeout });
    return completions.map(({ tokens, logProbs, mask, finishReason }, row) => ({
      ...{ example: of(row), mask, calls: conversation?.calls[row] ?? [] },
      problem: { question: questionOf(of(row)), answer: '', columns: of(row).columns, source: of(row).source },
      ...{ prompt: prompts[Math.floor(row / G)], completion: tokens, oldLogProbs: logProbs, text: texts[row] },
      ...{ finishReason, verdict: 'missing' as const, ...graded[row] },
    }));
  }

  /** One environment for each completion, in its first state; none where there are none. */
  async #environments(examples: Example[], count: number): Promise<Environment[]> {
    const { environment } = this.#options;
    if (!environment) return [];
    const make = async ({ prompt, columns }: Example) => {
      const made = environment();
      toolsIn(made);
      try {
        await made.reset?.({ ...columns, prompt });
      } catch (error) {
        throw new UserError(`environment: reset() threw: ${error instanceof Error ? error.message : shown(error)}`);
      }
      return made;
    };
    return Promise.all(examples.flatMap((example) => Array.from({ length: count }, () => make(example))));
  }

  /** The completions of a step: with DAPO, flat groups are sampled anew, and what is too long loses reward. */
  async #sampleStep(
    sample: (round: number, count: number) => Promise<Graded[]>,
    options: Options,
  ): Promise<{ rollouts: Graded[]; resampled: Graded[] }> {
    if (this.#lossType !== 'dapo') {
      return { rollouts: await sample(0, options.batchSize), resampled: [] };
    }
    const own = options as dapo.Options;
    const shortened = async (round: number, count: number) =>
      (await sample(round, count)).map((row) => {
        return { ...row, reward: row.reward - dapo.overlongPenalty(row.completion.length, own) };
      });
    return (await dapo.sampleUseful(shortened, own)) as { rollouts: Graded[]; resampled: Graded[] };
  }

  /** Held-out prompts: rewards of the greedy completions, and of samples as in training. */
  async #evaluate(
    model: Model,
    tokenizer: Tokenizer,
    examples: Example[],
    { samples, onProgress }: Asking,
    options: Options,
  ): Promise<Evaluation> {
    const ask = async (numGenerations: number, temperature: number): Promise<Graded[]> => {
      const sampling = { ...options, numGenerations, temperature, onProgress };
      const perBatch = Math.max(1, Math.floor((options.batchSize * options.numGenerations) / numGenerations));
      const rollouts: Graded[] = [];
      for (let begin = 0; begin < examples.length; begin += perBatch) {
        const draw: Draw = (place, ...token) => uniform(options.seed, -1, begin + place, ...token);
        const asked = examples.slice(begin, begin + perBatch);
        rollouts.push(...(await this.#rollout(model, tokenizer, asked, draw, sampling)));
      }
      return rollouts;
    };
    const greedy = await ask(1, 0);
    const metrics = { 'eval/reward': mean(greedy.map(({ reward }) => reward)), ...this.#perFunction(greedy, 'eval/') };
    const answers = greedy.slice(0, 3).map((row) => this.#toSample(row));
    if (samples === 0) return { metrics, answers };
    const sampled = (await ask(samples, options.temperature)).map(({ reward }) => reward);
    return { metrics: { ...metrics, 'eval/sampled_reward': mean(sampled) }, answers };
  }

  /** What the completions of a step say of the policy, without what only a task with right answers has. */
  #metrics(rollouts: Graded[], options: Options): Record<string, number> {
    const { rolloutMetrics } = ALGORITHMS[this.#lossType];
    const all = Object.entries(rolloutMetrics(rollouts, options));
    const isAboutAnswers = (name: string) => /^rewards\/accuracy|mean_(right|wrong)_length$/.test(name);
    const calls = rollouts.flatMap(({ calls }) => calls);
    const perTool = {
      'tools/call_frequency': calls.length / rollouts.length,
      'tools/failure_frequency': mean(calls.map(({ ok }) => Number(!ok))),
    };
    return {
      ...Object.fromEntries(all.filter(([name]) => !isAboutAnswers(name))),
      ...this.#perFunction(rollouts),
      ...(this.#tools.length > 0 ? perTool : {}),
    };
  }

  /** Mean and standard deviation of each reward function, over those completions that it has a reward for. */
  #perFunction(rollouts: Graded[], prefix = ''): Record<string, number> {
    const parts = this.#names.map((name, f): [string, number][] => {
      const values = rollouts.flatMap(({ rewards }) => rewards[f] ?? []);
      return [
        [`${prefix}rewards/${name}/mean`, mean(values)],
        [`${prefix}rewards/${name}/std`, sampleStd(values)],
      ];
    });
    return Object.fromEntries(parts.flat());
  }

  /** A line of completions.jsonl. */
  #toSample({ example, text, completion, reward, rewards, advantage, ...row }: Graded & { advantage?: number }) {
    return {
      ...{ question: questionOf(example), completion: text, tokens: completion.length, reward },
      ...{ ids: completion, logProbs: row.oldLogProbs.map((logProb, t) => (row.mask[t] ? logProb : null)) },
      rewards: Object.fromEntries(this.#names.map((name, f) => [name, rewards[f]])),
      ...(advantage === undefined ? {} : { advantage }),
    };
  }
}

const nameOf = (model: string | Pretrained): string => (typeof model === 'string' ? model : model.name);

/** @throws {UserError} naming what is no tool */
function checkedTools(tools: Tool[]): Tool[] {
  if (!Array.isArray(tools))
    throw new UserError(`tools must be a list of { name, description, call }, found ${shown(tools)}`);
  const wrong = tools.findIndex((tool) => typeof tool?.name !== 'string' || typeof tool.call !== 'function');
  if (wrong < 0) return tools;
  const what = (tools[wrong] as unknown) instanceof Promise ? 'a promise: await it' : shown(tools[wrong] ?? null);
  throw new UserError(`tools[${wrong}] must be { name, description, call }, found ${what}`);
}

/** @throws {UserError} if an environment has no list of tools */
function toolsIn(environment: Environment): Tool[] {
  if (Array.isArray(environment?.tools)) return checkedTools(environment.tools);
  throw new UserError(
    `environment() must return { reset?, tools: [...] } at once, found ${shown(environment ?? null)}`,
  );
}

/** A conversation whose system prompt says how tools are called, and which there are. */
function withTools(prompt: ChatMessage[], tools: Tool[]): ChatMessage[] {
  const [first, ...rest] = prompt;
  const [own, others] = first.role === 'system' ? [first.content, rest] : ['', prompt];
  return [{ role: 'system', content: [own, CALLING, describeTools(tools)].filter(Boolean).join('\n') }, ...others];
}

const CALLING =
  'You can call a tool: write <tool:NAME>what it is to work on</tool>, and its answer follows inside <result></result>. Give the final answer inside <answer></answer>, which ends the conversation. The tools:';

const loraOptions = ({ r, loraAlpha, targetModules }: PeftConfig): GRPOConfig => ({
  loraRank: r,
  ...(loraAlpha === undefined ? {} : { loraAlpha }),
  ...(targetModules === undefined ? {} : { loraTarget: [targetModules].flat() }),
});

/** What a prompt asks, for people: a text, or the last message. */
const questionOf = ({ prompt }: Example): string => (typeof prompt === 'string' ? prompt : prompt.at(-1)!.content);
