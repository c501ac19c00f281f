/** Keys that are not to stand in a command: HF_TOKEN, WANDB_API_KEY. */
import { UserError } from './errors.ts';

/**
 * Takes over what `.env` sets, if there is such a file; what is set already stays.
 * @throws {UserError} if it cannot be read
 */
export function loadEnvFile(): void {
  try {
    process.loadEnvFile('.env');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'ENOENT')
      throw new UserError(`.env cannot be read (${code}): it must be a file with NAME=value a line`);
  }
}
