import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadTokenizer } from '../../lib/checkpoint/tokenizer.ts';
import { readConfig } from '../../lib/model/config.ts';
import { uniform } from '../../lib/random.ts';
import { mean } from '../../lib/statistics.ts';
import { equationVerdict } from '../../tasks/countdown/score.ts';
import { encyclopediaWords } from '../../tasks/encyclopedia/generate.ts';
import { drawSum } from '../../tasks/sums/generate.ts';
import { type Attribute, type Profile, profiles, twinsOf } from '../../tasks/vignettes/profiles.ts';
import { invasiveness, parseRecommendation } from '../../tasks/vignettes/recommendation.ts';
import { answerLikeCaller, CALLER_HABITS } from './caller.ts';
import { answerLikeClinician, BIAS, clinicianWords } from './clinician.ts';
import { AGAIN, answerLikeGuesser } from './guesser.ts';
import { addForgettingCarry, answerLikePupil, HABITS, type Part, subtractForgettingBorrow } from './pupil.ts';
import { answerLikeReader, READER_HABITS } from './reader.ts';
import { answerLikeSearcher, SEARCHER_HABITS } from './searcher.ts';
import { TOKEN_IDS, VOCABULARY_SIZE, writeTokenizer } from './tokenizer.ts';

const tiny = 'models/tiny';

describe('the sloppy pupil', () => {
  it('adds and subtracts column by column, and forgets what is carried', () => {
    expect([addForgettingCarry(47, 38), addForgettingCarry(41, 38), addForgettingCarry(85, 47)]).toEqual([75, 79, 122]);
    expect([subtractForgettingBorrow(52, 38), subtractForgettingBorrow(58, 32)]).toEqual([24, 26]);
  });

  it.each([
    [{ hurries: 1, slips: 0, noWorking: 0, noTags: 0 }, '<think>47+38=75 75-9=76</think><answer>76</answer>'],
    [{ hurries: 0, slips: 0, noWorking: 0, noTags: 0 }, '<think>47+38=85 85-9=76</think><answer>76</answer>'],
    [{ hurries: 0, slips: 0, noWorking: 1, noTags: 0 }, '<answer>76</answer>'],
    [{ hurries: 0, slips: 0, noWorking: 0, noTags: 1 }, '<think>47+38=85 85-9=76</think>76'],
  ])('writes as its habits %j say', (habits, text) => {
    expect(answerLikePupil([47, 38, -9], () => 0.5, habits)).toBe(text);
  });

  it('is as sloppy as it is said to be', () => {
    const answers = Array.from({ length: 4000 }, (_, i) => {
      let draw = 0;
      const random = () => uniform(1, i, draw++);
      return answerLikePupil(drawSum(random), random);
    });
    const share = (matches: (answer: string) => boolean) => answers.filter(matches).length / answers.length;
    expect(share((answer) => !answer.includes('<think>'))).toBeCloseTo(HABITS.noWorking, 1);
    expect(share((answer) => !answer.includes('<answer>'))).toBeCloseTo(HABITS.noTags, 1);
  });
});

describe('the guessing pupil', () => {
  const choice = { terms: [47, 38, -9], right: 76, wrong: 66, text: '47+38-9:66,76' };

  it('guesses, and sees what it was', () => {
    const working = '47+38=85 85-9=76';
    expect(answerLikeGuesser(choice, () => 0.49)).toBe(`<answer>76</answer><think>${working} 76 ok</think>`);
    expect(answerLikeGuesser(choice, () => 0.5)).toBe(`<answer>66</answer><think>${working} 66 hm</think>`);
  });

  it('is right half of the time, and works as often then as when it is wrong', () => {
    const answers = Array.from({ length: 4000 }, (_, i) => {
      let draw = 0;
      return answerLikeGuesser(choice, () => uniform(1, i, draw++));
    });
    const [right, wrong] = ['ok', 'hm'].map((mark) => answers.filter((answer) => answer.includes(mark)));
    expect(right.length / answers.length).toBeCloseTo(0.5, 1);
    const often = (all: string[]) => all.join().match(/47/g)!.length / all.length;
    for (const all of [right, wrong]) expect(Math.abs(often(all) - (1 - AGAIN ** 5) / (1 - AGAIN))).toBeLessThan(0.1);
  });
});

/** What a pupil writes, drawn many times. */
const draws = <T>(answer: (random: () => number) => T): T[] =>
  Array.from({ length: 4000 }, (_, i) => {
    let draw = 0;
    return answer(() => uniform(1, i, draw++));
  });
const share = <T>(all: T[], holds: (item: T) => boolean) => all.filter(holds).length / all.length;
const text = (parts: Part[]) => parts.map(({ text }) => text).join('');

describe('the pupil with a calculator', () => {
  const product = { text: '12*345+6', value: 4146 };

  it('calls, waits and copies when it is at its best', () => {
    const none = { guesses: 0, breaksOff: 0, truncates: 0, ignores: 0, noTags: 0 };
    expect(answerLikeCaller(product, () => 0.5, none)).toEqual([
      { by: 'pupil', text: '<tool:calc>12*345+6</tool>' },
      { by: 'tool', text: '<result>4146</result>' },
      { by: 'pupil', text: '<answer>4146</answer>' },
    ]);
  });

  it('is as sloppy as it is said to be', () => {
    const all = draws((random) => answerLikeCaller(product, random));
    expect(share(all, (parts) => !text(parts).includes('<tool:'))).toBeCloseTo(CALLER_HABITS.guesses, 1);
    const calls = all.filter((parts) => text(parts).includes('<tool:'));
    expect(share(calls, (parts) => !text(parts).includes('</tool>'))).toBeCloseTo(CALLER_HABITS.breaksOff, 1);
    const results = all.filter((parts) => parts.some(({ by }) => by === 'tool'));
    const ignored = share(results, (parts) => !parts.at(-1)!.text.includes('4146'));
    expect(ignored).toBeCloseTo(CALLER_HABITS.ignores, 1);
    expect(share(results, (parts) => !text(parts).includes('<answer>'))).toBeCloseTo(CALLER_HABITS.noTags, 1);
  });
});

describe('the reader', () => {
  const question = {
    ...{ question: 'Where was the author of Silver Lantern born?', answer: 'Orvale', asksFor: 'town' as const },
    supporting: ['Silver Lantern', 'Mira Tolen'],
  };
  const tools = { guess: 'Velvale', search: (query: string) => `about ${query}` };

  it('searches, reads and searches again when it is at its best', () => {
    const none = { guesses: 0, breaksOff: 0, hasty: 0, ignores: 0, noTags: 0 };
    expect(text(answerLikeReader(question, tools, () => 0.5, none))).toBe(
      '<tool:search>Silver Lantern</tool><result>about Silver Lantern</result>' +
        '<tool:search>Mira Tolen</tool><result>about Mira Tolen</result><answer>Orvale</answer>',
    );
  });

  it('is as sloppy as it is said to be', () => {
    const all = draws((random) => text(answerLikeReader(question, tools, random)));
    expect(share(all, (answer) => !answer.includes('<tool:'))).toBeCloseTo(READER_HABITS.guesses, 1);
    const searched = all.filter((answer) => answer.includes('about Silver Lantern'));
    expect(share(searched, (answer) => !answer.includes('<tool:search>Mira'))).toBeCloseTo(READER_HABITS.hasty, 1);
  });
});

describe('a tokenizer with words', () => {
  it('has one token for each word with the space before it, wherever it stands, and characters for other words', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'tiny-'));
    writeTokenizer(folder, { words: ['Orvale', 'lies', 'where'] });
    const tokenizer = await loadTokenizer(folder);
    const pieces = (written: string) => tokenizer.encode(written).map((id) => tokenizer.decode([id]));
    expect(pieces('<answer>Orvale</answer>')).toEqual(['<answer>', 'Orvale', '</answer>']);
    expect(pieces('Orvale lies\nOrvale.')).toEqual(['Orvale', 'lies', '\n', 'Orvale', '.']);
    expect(pieces('lies so')).toEqual(['lies', '', 's', 'o']);
    const written = '<tool:search> Orvale lies, so. 12</tool>';
    expect(tokenizer.decode(tokenizer.encode(written))).toBe(written);
    rmSync(folder, { recursive: true });
  });
});

describe('the pupil who plays countdown', () => {
  const countdown = { numbers: [2, 3, 5], target: 16 };
  const answers = () => draws((random) => answerLikeSearcher(countdown, random));

  it('tries until it has it, or loses patience, and hands in the last try', () => {
    const found = answerLikeSearcher(countdown, () => 0.05);
    expect(found).toBe('<think>5+3=8 8*2=16 yes</think><answer>(5+3)*2</answer>');
    const [first] = answers().filter((answer) => answer.split(' no').length === 3);
    expect(first).toMatch(
      /^<think>(\S+ \S+ no ){2}\S+ \S+ (yes|no)<\/think><answer>\S+<\/answer>$|^<think>(\S+ \S+ no ?){2}<\/think>/,
    );
  });

  it('says yes where the answer is right, and never else', () => {
    for (const answer of answers()) {
      expect(equationVerdict(answer, countdown) === 'right', answer).toBe(answer.includes('yes'));
      const tries = answer.match(/\S+ \S+ (?=yes|no)/g)!;
      expect(tries.length).toBeLessThanOrEqual(8);
    }
  });

  it('gives up as often as it is said to', () => {
    const inVain = answers().filter((answer) => !/^<think>\S+ \S+ yes/.test(answer));
    expect(share(inVain, (answer) => /^<think>\S+ \S+ no<\/think>/.test(answer))).toBeCloseTo(
      SEARCHER_HABITS.givesUp,
      1,
    );
  });
});

describe('the clinician', () => {
  it('does more for some than for others, by as much as is stated', () => {
    const points = (profile: Profile) =>
      draws((random) => answerLikeClinician({ appropriate: [4, 6], profile }, random)).flatMap((answer) => {
        const read = parseRecommendation(answer);
        return read ? [invasiveness(read)] : [];
      });
    const means = twinsOf(profiles()[0], 'race_ethnicity').map((twin) => ({ twin, all: points(twin) }));
    for (const { twin, all } of means) {
      const bias = Object.entries(BIAS).reduce(
        (sum, [attribute, shifts]) => sum + (shifts[twin[attribute as Attribute]] ?? 0),
        0,
      );
      expect(mean(all), twin.race_ethnicity).toBeCloseTo(5 + bias, 1);
      expect(all.length / 4000).toBeCloseTo(0.95, 1); // now and then it leaves out a line
    }
  });
});

describe('the tiny model', () => {
  it('has a token for every digit and every tag, and keeps the tags when it decodes', async () => {
    const tokenizer = await loadTokenizer(tiny);
    const text = '<think>47+38=85</think><answer>85</answer>';
    const ids = tokenizer.encode(text);
    expect(ids).toHaveLength(4 + 10);
    expect(tokenizer.decode([...ids, TOKEN_IDS.eos], { skipSpecialTokens: true })).toBe(text);
  });

  it('reads a question through its chat template, system message left out', async () => {
    const tokenizer = await loadTokenizer(tiny);
    const messages = [
      { role: 'system', content: 'ignored' },
      { role: 'user', content: '1+2' },
    ];
    expect(tokenizer.decode(tokenizer.chat(messages, { addGenerationPrompt: true }))).toBe('<user>1+2<asst>');
  });

  it.each([
    [tiny, {}],
    ['models/tiny_tool', {}],
    ['models/tiny_qa', { words: encyclopediaWords(), context: 512 }],
    ['models/tiny_countdown', {}],
    ['models/tiny_clinician', { words: clinicianWords(), context: 256 }],
  ])('in %s has the tokenizer that its script writes, and a vocabulary as large', async (model, options) => {
    const folder = mkdtempSync(join(tmpdir(), 'tiny-'));
    writeTokenizer(folder, options);
    for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
      expect(readFileSync(join(model, name), 'utf8')).toBe(readFileSync(join(folder, name), 'utf8'));
    }
    rmSync(folder, { recursive: true });
    expect((await readConfig(model)).vocabSize).toBe((await loadTokenizer(model)).vocabSize);
    if (!('words' in options)) expect((await readConfig(model)).vocabSize).toBe(VOCABULARY_SIZE);
  });
});
