/**
 * The task of this experiment: which vignettes are told, and what a recommendation is worth by itself. What it is worth
 * beside those of the twins, and what is learnt from that, is in train.ts.
 */
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import type { Verdict } from '../lib/environments/answers.ts';
import { loadProblems, loadSplits, type Problem } from '../lib/environments/dataset.ts';
import { UserError } from '../lib/errors.ts';
import { type Attribute, FACTORS, type Profile } from '../tasks/vignettes/profiles.ts';
import {
  INSTRUCTIONS,
  invasiveness,
  parseRecommendation,
  writeRecommendation,
} from '../tasks/vignettes/recommendation.ts';
import { twins, type Vignette, vignettesOf } from '../tasks/vignettes/vignette.ts';

// ─── Vignettes ───────────────────────────────────────────────────────────────────────────────────────────────────────

export const CASES = { train: 'tasks/vignettes/train.jsonl', test: 'tasks/vignettes/test.jsonl' };

/** How many different patients have each case in training. */
const PATIENTS = 12;

/**
 * The vignettes of a run: of each patient the one of the attribute's first level, from which its twins are told.
 * @param options.numSamples - vignettes to ask in an evaluation, twins included, of a balanced sample of profiles
 * @throws {UserError} for cases that cannot be read, and numbers that do not go with the attribute's levels
 */
export function loadVignettes(
  options: {
    attribute: Attribute;
    group: Group;
    numSamples: number;
    numGenerations: number;
    batchSize: number;
    seed: number;
  } & Parameters<typeof loadSplits>[1],
): { train: Vignette[]; test: Vignette[] } {
  const { attribute, group, numSamples, numGenerations: G, batchSize: P, seed } = options;
  const levels = FACTORS[attribute].length;
  if (G % levels !== 0) {
    throw new UserError(
      `--num-generations ${G} must be a multiple of ${levels}, the levels of ${attribute}, so that a group has as many of each: take ${Math.ceil(G / levels) * levels}`,
    );
  }
  if (group !== 'counterfactual' && P % levels !== 0) {
    throw new UserError(
      `--batch-size ${P} must be a multiple of ${levels}, the levels of ${attribute}, so that a batch without twins has as many of each: take ${Math.ceil(P / levels) * levels}`,
    );
  }
  if (numSamples < levels) {
    throw new UserError(
      `--num-samples ${numSamples} must be at least ${levels}, one vignette for each level of ${attribute}`,
    );
  }
  const cases = loadSplits<Problem>(loadProblems, options, CASES);
  const patients = Math.floor(numSamples / levels);
  const asked = cases.test.slice(0, patients);
  return {
    train: vignettesOf(cases.train, { attribute, perCase: PATIENTS, seed }),
    // Of the bundled cases the same ones whatever the seed, so that all runs can be compared.
    test: vignettesOf(asked, { attribute, perCase: Math.floor(patients / asked.length), seed: 0 }),
  };
}

/** Patients and their twins, one after the other. */
export const withTwins = (patients: Vignette[], { attribute }: { attribute: Attribute }): Vignette[] =>
  patients.flatMap((patient) => twins(patient, attribute));

/** The vignettes that a group answers: the twins of a patient, or one patient, whose level is drawn by its place. */
export function told(patients: Vignette[], { group, attribute }: { group: Group; attribute: Attribute }): Vignette[][] {
  const all = patients.map((patient) => twins(patient, attribute));
  return group === 'counterfactual' ? all : all.map((some, i) => [some[i % some.length]]);
}

/** The prompt's token ids, tokenised once: what is sampled after them is never turned into text and back. */
export function buildPrompt(
  tokenizer: Tokenizer,
  { question }: Pick<Vignette, 'question'>,
  { systemPrompt = INSTRUCTIONS }: { systemPrompt?: string | undefined },
): number[] {
  const system = { role: 'system', content: systemPrompt };
  return tokenizer.chat([system, { role: 'user', content: question }], { addGenerationPrompt: true });
}

// ─── A recommendation by itself ──────────────────────────────────────────────────────────────────────────────────────

/** Points of invasiveness, of 10, by which a recommendation that is to be worth something may be off. */
export const SCALE = 5;

/**
 * What was recommended for a vignette, and what that is worth for its case. `points`: invasiveness from 0 to 10, undefined
 * if it could not be read; `recommended`: all of it, in the same words whoever wrote it.
 */
export type Rated = {
  caseNumber: number;
  complaint: string;
  profile: Profile;
  recommended: string;
  points: number | undefined;
  appropriateness: number;
  verdict: Verdict;
};

/**
 * Reads a recommendation. Appropriateness is 1 within the range that the case calls for, and falls to 0 over
 * {@link SCALE} points outside of it; it is 0, too, where nothing can be read. Verdicts count what is within the range.
 */
export function rate(completion: string, { caseNumber, complaint, profile, appropriate }: Vignette): Rated {
  const told = { caseNumber, complaint, profile };
  const recommendation = parseRecommendation(completion);
  if (!recommendation) return { ...told, recommended: '', points: undefined, appropriateness: 0, verdict: 'missing' };
  const points = invasiveness(recommendation);
  const off = Math.max(appropriate[0] - points, points - appropriate[1], 0);
  const recommended = writeRecommendation(recommendation).replaceAll('\n', ', ');
  const worth = { appropriateness: Math.max(0, 1 - off / SCALE), verdict: off === 0 ? 'right' : 'wrong' } as const;
  return { ...told, recommended, points, ...worth };
}

/** The rewards, in the order of `--reward-weights`; the last one is of a group, and in train.ts. */
export const REWARDS = ['format', 'appropriateness', 'fairness'] as const;

/** What a group is, and so what fairness is measured between. */
export const GROUPS = ['counterfactual', 'samples', 'one-reward'] as const;
export type Group = (typeof GROUPS)[number];
