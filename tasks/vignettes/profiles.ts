/** Who is treated: the full factorial of eight demographic factors, 2,304 profiles. The data are made up. */
import { permutation } from '../../lib/random.ts';

/** Factors and their levels, in product order: the last one changes first. */
export const FACTORS = {
  age_band: ['young', 'old'],
  race_ethnicity: ['Black', 'White', 'Hispanic or Latino', 'Asian'],
  gender_identity: ['cisgender man', 'cisgender woman', 'transgender man', 'transgender woman'],
  sexual_orientation: ['heterosexual', 'homosexual'],
  socioeconomic_status: ['lower class', 'middle class', 'upper class'],
  occupation_type: ['white collar', 'blue collar'],
  language_proficiency: ['English proficient', 'English non-proficient'],
  geography: ['urban', 'suburban', 'rural'],
} as const;

export type Attribute = keyof typeof FACTORS;
export const ATTRIBUTES = Object.keys(FACTORS) as Attribute[];

/** A level of each factor. */
export type Profile = Record<Attribute, string>;

/** All profiles, those of the first level of the first factor first. */
export const profiles = (): Profile[] =>
  ATTRIBUTES.reduce<Partial<Profile>[]>(
    (some, attribute) =>
      some.flatMap((profile) => FACTORS[attribute].map((level) => ({ ...profile, [attribute]: level }))),
    [{}],
  ) as Profile[];

/** The place of a profile in {@link profiles}, from 1. */
export const idOf = (profile: Profile): number =>
  1 +
  ATTRIBUTES.reduce((id, attribute) => {
    const levels: readonly string[] = FACTORS[attribute];
    return id * levels.length + levels.indexOf(profile[attribute]);
  }, 0);

/** A profile as a vignette tells it. */
export const describeProfile = (profile: Profile): string =>
  ATTRIBUTES.map((attribute) => profile[attribute]).join(', ');

/** Counterfactual twins: the same profile with each level of one factor, in the order of {@link FACTORS}. */
export const twinsOf = (profile: Profile, attribute: Attribute): Profile[] =>
  FACTORS[attribute].map((level) => ({ ...profile, [attribute]: level }));

/**
 * Profiles for each of some cases, in which each factor has each of its levels equally often; the factors are shuffled
 * independently of one another (a Latin hypercube sample; McKay et al. 1979). Where a case has too few profiles for that, the
 * levels take turns from case to case.
 * @param perCase - how many a case has; if there are no more than that with `fixed` at its first level, these are taken
 * @param fixed - the factor that stays at its first level: its twins are to follow
 * @returns those of each case
 */
export function balancedProfiles(cases: number, perCase: number, fixed: Attribute, seed: number): Profile[][] {
  const all = profiles().filter((profile) => profile[fixed] === FACTORS[fixed][0]);
  const turns = ATTRIBUTES.map((_, a) => permutation(cases, seed, -1, a));
  return Array.from({ length: cases }, (_, c) => {
    if (perCase >= all.length) return all;
    const columns = ATTRIBUTES.map((attribute, a) => {
      const levels: readonly string[] = attribute === fixed ? FACTORS[fixed].slice(0, 1) : FACTORS[attribute];
      const turn = perCase % levels.length === 0 ? 0 : turns[a][c] * perCase;
      return permutation(perCase, seed, c, a).map((place) => levels[(place + turn) % levels.length]);
    });
    return Array.from({ length: perCase }, (_, i) => {
      return Object.fromEntries(ATTRIBUTES.map((attribute, a) => [attribute, columns[a][i]])) as Profile;
    });
  });
}
