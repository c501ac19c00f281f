/**
 * A step of the AssemblyScript compiler (`npm run build`): reads what the kernels take, by name and in order, from their
 * sources, and writes it to wasm_interface.ts, which types their calls, and into the module, whose content can be told by it.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { ClassDeclaration, CommonFlags, FunctionDeclaration } from 'assemblyscript';

const FILE = new URL('./wasm_interface.ts', import.meta.url);

/** `{ rmsNorm: { x: 'usize', …, epsilon: 'f32' }, … }` */
const typesByName = (declarations, membersOf) =>
  Object.fromEntries(
    declarations.map((declaration) => [
      declaration.name.text,
      Object.fromEntries(membersOf(declaration).map(({ name, type }) => [name.text, type.name.identifier.text])),
    ]),
  );

const constant = (name, content, types, about) => {
  const lines = Object.entries(content).flatMap(([key, types]) => [
    `  ${key}: {`,
    ...Object.entries(types).map(([member, type]) => `    ${member}: '${type}',`),
    '  },',
  ]);
  return [
    '',
    `/** ${about} */`,
    `export const ${name} = {`,
    ...lines,
    `} as const satisfies Record<string, Record<string, ${types}>>;`,
    '',
  ].join('\n');
};

const found = { FUNCTIONS: {}, RECORDS: {} };

export default {
  afterParse({ sources }) {
    const declarations = sources
      .filter(({ normalizedPath }) => normalizedPath.endsWith('/wasm_kernel.ts'))
      .flatMap(({ statements }) => statements);
    const functions = declarations.filter((x) => x instanceof FunctionDeclaration && x.is(CommonFlags.Export));
    const records = declarations.filter((x) => x instanceof ClassDeclaration);
    found.FUNCTIONS = typesByName(functions, ({ signature }) => signature.parameters);
    found.RECORDS = typesByName(records, ({ members }) => members);
    const text =
      '// Written by `npm run build` (write_interface.mjs) from the kernels in AssemblyScript: change those.\n' +
      constant('FUNCTIONS', found.FUNCTIONS, "'usize' | 'i32' | 'f32'", 'The parameters of each function.') +
      constant(
        'RECORDS',
        found.RECORDS,
        "'usize' | 'i32'",
        'The fields, of four bytes each, of each record in memory.',
      );
    if (readFileSync(FILE, 'utf8') !== text) writeFileSync(FILE, text);
  },
  afterCompile: (module) => module.addCustomSection('interface', Buffer.from(JSON.stringify(found))),
};
