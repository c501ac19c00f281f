/** What the page is told, by the server or in a report: the words that both sides share. */

/** `killed`: its process has gone without ending it. */
export type RunState = 'running' | 'finished' | 'stopped' | 'killed';

/** A run as a whole. */
export type ToldRun = {
  name: string;
  experiment: string;
  model: string;
  state: RunState;
  /** the newest step that it has logged, of so many */
  step: number;
  maxSteps: number;
  /** seconds that the rest will take at the pace of the last steps */
  left?: number;
  /** options and values: those that differ from the defaults, or all where these are not known */
  options: { differing: boolean; list: [string, string][] };
  /** the newest value of some metrics, by what they are called here */
  newest: [string, number][];
  notices: { step: number; text: string }[];
  answers: ToldAnswer[];
  /** steps whose completions can be asked for, of so many that there are: in a report of a long run, some */
  groups: number;
  allGroups: number;
  /** the command that continues it, where there is something to continue */
  resume?: string;
};

/** A held-out question: what was answered before the first step, and after the last. */
export type ToldAnswer = { question: string; answer?: string; before?: ToldRow; after?: ToldRow };

/** A completion, and what it was worth. */
export type ToldRow = {
  completion: string;
  /** null: it is no number */
  reward: number | null;
  /** parts of the reward, by name */
  rewards: [string, number][];
  advantage?: number;
  tokens?: number;
  /** the text of each token, and its log-prob (nats): null where the policy did not choose it */
  pieces?: string[];
  logProbs?: (number | null)[];
  /** what each token weighs in the loss of the run's train.ts, where that was asked: −∂L/∂log π */
  weights?: number[];
};

/** Completions of one prompt. */
export type ToldGroup = { question: string; answer?: string; rows: ToldRow[] };

/** What was sampled in a step: place `at` among those that can be asked for. */
export type ToldStep = { at: number; step: number; groups: ToldGroup[] };

/** Curves as SVG documents for images. */
export type ToldCurves = {
  panels: { label: string; svg: string }[];
  /** a line for each kind of run, where there are several */
  legend: { name: string; svg: string }[];
  note: string;
};

/** What the page shows first. `version` grows with whatever is new. */
export type Told = { runs: ToldRun[]; version: number };

/** Another step that has a question of this one: that of run `run` at place `at`. */
export type Like = { run: number; at: number };

/** Everything at once, in a report. `steps` and `like` are by run: in `like[r][s][at]`, the place in run s. */
export type Report = { told: Told; curves: ToldCurves; steps: ToldStep[][]; like: (number | null)[][][] };
