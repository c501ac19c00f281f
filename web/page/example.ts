/** What the page explains itself by: a group of four, with the advantages that experiment_base would give it. */
import type { ToldGroup } from '../../watch/told.ts';

const row = (completion: string, reward: number, advantage: number, tokens: number) => ({
  ...{ completion, reward, advantage, tokens },
  rewards: [],
});

export const EXAMPLE: ToldGroup = {
  question: '47+38-9',
  answer: '76',
  rows: [
    row('<think>47+38=85 85-9=76</think><answer>76</answer>', 1, 1.4924, 23),
    row('<think>47+38=75 75-9=66</think><answer>66</answer>', 0.1, -0.4264, 23),
    row('<think>47+38=85 85-9=74</think><answer>74</answer>', 0.1, -0.4264, 23),
    row('<think>47+38=85 85-9=76</think>', 0, -0.6396, 19),
  ],
};

/** The reward of experiment_base, for sums: what the page starts with. */
export const REWARD = `// What a completion is worth. Change it, and see what the model makes of it:
// text.length % 2, say, or -text.length, or 1 for every even answer.
function reward(text, answer, question) {
  const given = [...text.matchAll(/<answer>(.*?)<\\/answer>/gs)].at(-1)?.[1].trim();
  if (!given) return 0; // no answer in its tags
  return Number(given) === Number(answer) ? 1 : 0.1; // a wrong one gets a little, as a hint towards the tags
}
`;
