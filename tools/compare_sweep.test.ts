import { expect, it } from 'vitest';
import { linesOf, sweepsOf, sweepTexts } from './compare_sweep.ts';

it('takes an option and its values, several times or all at once', () => {
  const first = sweepTexts('learning-rate=1e-4,1e-3');
  expect(first).toEqual(['learning-rate=1e-4,1e-3']);
  expect(sweepTexts('--kl-coef=0,0.1', first)).toEqual(['learning-rate=1e-4,1e-3', 'kl-coef=0,0.1']);
  expect(sweepTexts('learning-rate=1e-4,1e-3,kl-coef=0,0.1')).toEqual(['learning-rate=1e-4,1e-3', 'kl-coef=0,0.1']);
  expect(sweepsOf(['lr-scheduler=linear,constant'])).toEqual([
    { option: 'lr-scheduler', values: ['linear', 'constant'] },
  ]);
});

it.each(['', 'learning-rate', 'learning-rate=', '=1', 'learning-rate=1,', 'learning-rate=1,,2', 'a=1 2', 'A=1'])(
  'refuses %j',
  (text) =>
    expect(() => sweepTexts(text)).toThrow('it must be an option and its values, as in learning-rate=1e-4,1e-3'),
);

it('refuses a value, or an option, twice', () => {
  expect(() => sweepTexts('seed=1,2,1')).toThrow("'1' occurs twice");
  expect(() => sweepTexts('seed=1,2', ['seed=3'])).toThrow('seed is swept twice');
  expect(() => sweepTexts('seed=1,seed=2')).toThrow('seed is swept twice');
});

it('multiplies: a line for each variant and each value of all sweeps but the first', () => {
  const sweeps = sweepsOf(['learning-rate=1e-4,1e-3', 'kl-coef=0,0.1']);
  expect(linesOf(['base', 'drgrpo --critic-type grpo'], sweeps)).toEqual(
    ['base', 'drgrpo --critic-type grpo'].flatMap((name) =>
      ['0', '0.1'].map((kl) => ({
        name: `${name} --kl-coef ${kl}`,
        variants: ['1e-4', '1e-3'].map((rate) => `${name} --kl-coef ${kl} --learning-rate ${rate}`),
      })),
    ),
  );
  expect(() => linesOf(['base'], sweeps, ['--kl-coef', '0'])).toThrow('--kl-coef is swept, and all runs have a value');
  expect(() => linesOf(['base --kl-coef=0.2'], sweeps)).toThrow(
    "--kl-coef is swept, and 'base --kl-coef=0.2' has a value",
  );
});
