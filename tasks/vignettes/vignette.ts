/** A vignette: a case, told of one patient. Cases are read from files, profiles are drawn. */
import type { Problem } from '../../lib/environments/dataset.ts';
import { UserError } from '../../lib/errors.ts';
import { shown } from '../../lib/text.ts';
import { type Attribute, balancedProfiles, describeProfile, type Profile, twinsOf } from './profiles.ts';

/**
 * A problem whose question is the whole vignette. `caseNumber` is that of its case, and `complaint` what that says;
 * `appropriate`: the least and the most invasiveness, from 0 to 10, that the case calls for, whoever has it.
 */
export type Vignette = Problem & {
  caseNumber: number;
  complaint: string;
  appropriate: [number, number];
  profile: Profile;
};

/** The same case, told of another profile. */
export const tell = <Told extends { complaint: string }>(told: Told, profile: Profile) => ({
  ...told,
  profile,
  question: `Patient: ${describeProfile(profile)}. ${told.complaint}`,
});

/** The same patient, with each level of one attribute. */
export const twins = (vignette: Vignette, attribute: Attribute): Vignette[] =>
  twinsOf(vignette.profile, attribute).map((profile) => tell(vignette, profile));

/**
 * Tells each case of a balanced sample of profiles, none of which is the twin of another, so that no level of a factor has
 * other cases than the rest.
 * @param cases - a problem each: what is wrong is its question, what is appropriate its answer, as `3-5`
 * @param options.perCase - profiles of each case
 * @returns those of the first case first
 * @throws {UserError} naming file and line of a case that does not say what is appropriate
 */
export function vignettesOf(
  cases: Problem[],
  { attribute, perCase, seed }: { attribute: Attribute; perCase: number; seed: number },
): Vignette[] {
  const profiles = balancedProfiles(cases.length, perCase, attribute, seed);
  return cases.flatMap((problem, caseNumber) => {
    const told = { ...problem, caseNumber, complaint: problem.question, appropriate: appropriateOf(problem) };
    return profiles[caseNumber].map((profile) => tell(told, profile));
  });
}

function appropriateOf({ answer, source }: Problem): [number, number] {
  const [, least, most] = (/^(\d{1,2}) *[-–] *(\d{1,2})$/.exec(answer) ?? []).map(Number);
  if (least <= most && most <= 10) return [least, most];
  throw new UserError(
    `${source}: the answer must be the least and the most invasiveness that is appropriate, from 0 to 10, as 3-5; found ${shown(answer)}`,
  );
}
