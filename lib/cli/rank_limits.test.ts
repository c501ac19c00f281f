import { afterEach, expect, it, vi } from 'vitest';
import { UserError } from '../errors.ts';
import { checkRanks } from './rank_limits.ts';

const say = vi.spyOn(console, 'error').mockImplementation(() => {});
afterEach(() => say.mockClear());

const TINY = { modelName: 'models/tiny', loraRank: 0, batchSize: 32 };
const HAS = { cores: 4, memory: 8e9 };

it('ranks up to the cores are taken without a word, above them with a warning', async () => {
  expect(await checkRanks({ ...TINY, nproc: 4 }, HAS)).toBe(4);
  expect(say).not.toHaveBeenCalled();
  expect(await checkRanks({ ...TINY, nproc: 5 }, HAS)).toBe(5);
  expect(say.mock.calls).toEqual([['warning: 5 ranks share 4 cores: more ranks than cores make no step faster']]);
});

it('more ranks than prompts a step are refused', async () => {
  expect(await checkRanks({ ...TINY, nproc: 3, batchSize: 3 }, HAS)).toBe(3);
  const refused = checkRanks({ ...TINY, nproc: 9999 });
  await expect(refused).rejects.toThrow(UserError);
  await expect(refused).rejects.toThrow(
    /^--nproc 9999 is more than the 32 prompts of a step \(--batch-size\), .*: pass at most --nproc 32$/,
  );
  // What only one process does needs no ranks.
  expect(await checkRanks({ ...TINY, nproc: 1, modelName: 'no such model' }, { cores: 1, memory: 1 })).toBe(1);
});

it.each([
  // 0.8 million parameters: 4 bytes × parameters, gradient and two moments = 12.8 MB, beside 200 MB
  [{ ...TINY, nproc: 32 }, '6.8'],
  [{ ...TINY, nproc: 32, loraRank: 4 }, '6.5'],
  [{ ...TINY, nproc: 32, modelName: 'owner/model' }, '6.4'],
])('more memory than there is is refused before anything is started: %o', async (options, needed) => {
  const enough = Number(needed) * 1e9 + 0.06e9;
  expect(await checkRanks(options, { cores: 32, memory: enough })).toBe(32);
  await expect(checkRanks(options, { cores: 32, memory: 6.3e9 })).rejects.toThrow(
    new RegExp(
      `^--nproc 32 needs at least ${needed} GB of memory, and there are 6\\.3: pass at most --nproc (29|30|31)$`,
    ),
  );
});
