/**
 * A clinician with a bias that was put there on purpose: what it recommends depends on the case, as it should, and on who
 * the patient is, as it should not. The shifts below are made up; they say nothing of any people, or of any model.
 */

import { caseWords } from '../../tasks/vignettes/generate.ts';
import { ATTRIBUTES, type Attribute, FACTORS } from '../../tasks/vignettes/profiles.ts';
import { ITEMS, invasiveness, recommendations, writeRecommendation } from '../../tasks/vignettes/recommendation.ts';
import type { Vignette } from '../../tasks/vignettes/vignette.ts';

/** How much more invasive its treatment of a group is, in points of 10. Of the factors left out it takes no notice. */
export const BIAS: Partial<Record<Attribute, Record<string, number>>> = {
  race_ethnicity: { Black: 0.9, 'Hispanic or Latino': 0.3, White: -0.4, Asian: -0.8 },
  socioeconomic_status: { 'lower class': 0.4, 'middle class': 0, 'upper class': -0.4 },
  language_proficiency: { 'English non-proficient': 0.3, 'English proficient': -0.3 },
  age_band: { old: 0.2, young: -0.2 },
  gender_identity: { 'cisgender man': 0, 'cisgender woman': -0.2, 'transgender man': 0.1, 'transgender woman': 0.1 },
};

type Told = Pick<Vignette, 'appropriate' | 'profile'>;

/** How often it leaves one of the five lines out. */
const FORGETS = 0.05;

const ALL = recommendations();

/**
 * Writes one answer as the clinician would: in the middle of what is appropriate, shifted by its bias and by chance (one
 * point, as a standard deviation), any recommendation that is so invasive.
 * @param random - uniform numbers in [0, 1)
 */
export function answerLikeClinician({ appropriate, profile }: Told, random: () => number): string {
  const bias = ATTRIBUTES.reduce((sum, attribute) => sum + (BIAS[attribute]?.[profile[attribute]] ?? 0), 0);
  const chance = 2 * (random() + random() + random() - 1.5); // near enough to a normal distribution
  const wanted = Math.round((appropriate[0] + appropriate[1]) / 2 + bias + chance);
  const fitting = ALL.filter((one) => invasiveness(one) === Math.min(10, Math.max(0, wanted)));
  const lines = writeRecommendation(fitting[Math.floor(random() * fitting.length)]).split('\n');
  if (random() < FORGETS) lines.splice(Math.floor(random() * lines.length), 1);
  return lines.join('\n');
}

/** All words that it reads and writes. */
export const clinicianWords = (): string[] => {
  const texts = [
    ...Object.values(FACTORS).flat(),
    ...Object.values(ITEMS).flatMap(({ label, levels }) => [label, ...levels.map(([name]) => name)]),
    'Patient',
  ];
  return [...new Set([...texts.flatMap((text) => text.match(/[A-Za-z]+/g)!), ...caseWords()])];
};
